// SPDX-License-Identifier: Apache-2.0

package virtnbd

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/imgbackup/imgbackup/qcow2"
)

// Bounds of what a folder may hold.
const (
	maxEntries = 1 << 16
	maxChain   = 1 << 10 // streams that make up a disk
)

// Backup is what one run of the program left, of all disks.
type Backup struct {
	Made       time.Time
	Kind       string // full, copy, inc or diff
	Checkpoint string // that it belongs to, as the program calls it; may be empty
	Config     string // path of the domain's definition; empty: none
	Disks      []Disk // by name
	// Refused says why it can't be read as disks; nil: it can, as far as its form tells.
	Refused error

	beside beside
}

// Disk is one disk of a backup.
type Disk struct {
	Name  string
	Files []string // paths: a full stream, and increments over it, the oldest first
	Raw   bool     // its one file is no stream, but the disk itself, byte by byte, if its format was raw

	folder *Folder
}

// Top is the path of the newest of its files.
func (d *Disk) Top() string { return d.Files[len(d.Files)-1] }

// Open opens the disk, for [qcow2.OpenOptions]. A file that has changed since the folder was
// looked at is an error.
func (d *Disk) Open(string, qcow2.Format) (qcow2.Foreign, error) {
	im, err := openImage(d.Files, d.folder.index)
	if err != nil {
		return nil, err
	}
	return im, nil
}

// Folder is what the program left in a folder.
type Folder struct {
	Backups []Backup // the oldest first
	Notes   []string // for a person

	streams map[string]*seenFile // by path
}

// seenFile is a file of the folder, as it was when it was looked at.
type seenFile struct {
	path, disk, kind, ident string
	id                      qcow2.FileID
	*stream                 // nil: it is no stream, or can't be read as one
	err                     error

	sum      uint32 // that was written beside it
	summed   bool   // there is one
	verified bool   // the file was compared with it
	verdict  error  // what came of that
}

// index is what is known of a file that was opened anew.
func (d *Folder) index(f *qcow2.File) (*stream, error) {
	for _, s := range d.streams {
		if s.id.Dev == f.Opened().Dev && s.id.Inode == f.Opened().Inode {
			if s.id != f.Opened() {
				return nil, errors.New("it has changed since it was looked at")
			}
			return s.stream, s.err
		}
	}
	return nil, errors.New("it has been replaced since it was looked at")
}

// Scan looks through a folder. Dates without a zone are in that one. Links in it are followed to
// what lies in it, or in one of the folders of allow.
func Scan(dir string, zone *time.Location, allow []string) (*Folder, error) {
	roots, err := resolved(append([]string{dir}, allow...))
	if err != nil {
		return nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	names, err := f.Readdirnames(maxEntries + 1)
	err = errors.Join(err, f.Close())
	switch {
	case err != nil:
		return nil, err
	case len(names) > maxEntries:
		return nil, fmt.Errorf("%s has more than %d entries", dir, maxEntries)
	}
	slices.Sort(names)
	d := &Folder{streams: make(map[string]*seenFile)}
	for _, name := range names {
		switch disk, kind, ident := parseName(name); {
		case strings.HasSuffix(name, ".partial"):
			d.note("%s was never completed, and is left alone", name)
		case kind != "":
			s := look(filepath.Join(dir, name), roots)
			s.disk, s.kind, s.ident = disk, kind, ident
			d.streams[s.path] = s
		case strings.HasSuffix(name, ".data"):
			d.note("%s has no name that virtnbdbackup gives, and is left alone", name)
		}
	}
	if len(d.streams) == 0 {
		return nil, fmt.Errorf("%s holds no backup of virtnbdbackup (no DISK.full.data, DISK.copy.data or DISK.inc.CHECKPOINT.data)", dir)
	}
	d.order(dir, zone)
	return d, nil
}

func (d *Folder) note(format string, args ...any) {
	d.Notes = append(d.Notes, fmt.Sprintf(format, args...))
}

// parseName takes the name of a file of data apart; kind is empty if it is none. ident is of an
// increment.
func parseName(name string) (disk, kind, ident string) {
	base, ok := strings.CutSuffix(name, ".data")
	if !ok {
		return "", "", ""
	}
	for _, kind := range []string{"full", "copy"} {
		if disk, ok := strings.CutSuffix(base, "."+kind); ok && disk != "" && !strings.Contains(disk, ".") {
			return disk, kind, ""
		}
	}
	parts := strings.SplitN(base, ".", 3)
	if len(parts) == 3 && parts[0] != "" && (parts[1] == "inc" || parts[1] == "diff") {
		return parts[0], parts[1], parts[2]
	}
	return "", "", ""
}

// resolved are folders without links in their paths; those that do not exist are left out, but for
// the first.
func resolved(dirs []string) ([]string, error) {
	var all []string
	for i, dir := range dirs {
		real, err := filepath.EvalSymlinks(dir)
		if err == nil {
			real, err = filepath.Abs(real)
		}
		switch {
		case i > 0 && errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, err
		default:
			all = append(all, real)
		}
	}
	return all, nil
}

// follow is what a file of the folder is without links. One that leads elsewhere is an error: who
// has written into the folder may not be who may read that.
func follow(path string, roots []string) (string, error) {
	real, err := filepath.EvalSymlinks(path)
	if err == nil {
		real, err = filepath.Abs(real)
	}
	if err != nil {
		return "", err
	}
	for _, root := range roots {
		if strings.HasPrefix(real, strings.TrimSuffix(root, "/")+"/") {
			return real, nil
		}
	}
	return "", fmt.Errorf("it is a link to %s, outside of the folder: allow that one's folder if it is meant (--allow-dir)", real)
}

// look reads the index of a file.
func look(path string, roots []string) *seenFile {
	s := &seenFile{path: path}
	real, err := follow(path, roots)
	if err != nil {
		s.err = err
		return s
	}
	f, err := qcow2.OpenFile(real)
	if err != nil {
		s.err = err
		return s
	}
	s.id = f.Opened()
	is, err := begins(f)
	if err == nil && is {
		s.stream, err = parse(f, s.id.Size)
	}
	if err = errors.Join(err, f.Close()); err == nil && s.stream != nil {
		s.sum, s.summed, err = checksum(path)
	}
	s.err = err
	return s
}

// made is when a file was made, as it says itself.
func (s *seenFile) made(zone *time.Location) (time.Time, error) {
	if s.stream == nil {
		return time.Unix(0, s.id.MtimeNs), nil // a disk as it is says nothing
	}
	for _, form := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999"} {
		if t, err := time.ParseInLocation(form, s.Date, zone); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%s: its date is %.40q", s.path, s.Date)
}

// check returns an error for a file that does not fit its name.
func (s *seenFile) check() error {
	increment := s.kind == "inc" || s.kind == "diff"
	switch {
	case s.err != nil:
		return fmt.Errorf("%s: %w", s.path, s.err)
	case s.stream == nil && increment:
		return fmt.Errorf("%s does not begin as a stream of virtnbdbackup does", s.path)
	case s.stream == nil:
		return nil
	case s.Disk != s.disk:
		return fmt.Errorf("%s is a stream of disk %.80q", s.path, s.Disk)
	case s.Incremental != increment:
		return fmt.Errorf("%s: that it is incremental is %v, by what it says itself", s.path, s.Incremental)
	case increment && s.Parent == "":
		return fmt.Errorf("%s does not say since what it is incremental", s.path)
	}
	return nil
}

// offline reports whether an increment was made without a checkpoint of its own.
func (s *seenFile) offline() bool { return s.kind == "diff" || s.Checkpoint == s.Parent }

// order finds out which files make up which backups.
func (d *Folder) order(dir string, zone *time.Location) {
	type groupKey struct{ kind, ident string }
	groups := make(map[groupKey]*Backup)
	counts := make(map[string]int) // diffs of each disk and parent so far
	for _, s := range d.sorted(zone) {
		key := groupKey{s.kind, s.ident}
		switch {
		case s.kind == "copy":
			key.kind = "full" // disks without bitmaps are copied where others are full
		case s.kind == "diff" && s.stream != nil: // its name has a time, which disks do not share
			n := s.disk + "\x00" + s.Parent
			counts[n]++
			key.ident = fmt.Sprintf("%s\x00%d", s.Parent, counts[n])
		}
		b := groups[key]
		if b == nil {
			b = &Backup{Kind: s.kind}
			groups[key] = b
		}
		d.add(b, s, zone)
		if b.Config == "" {
			b.beside = besideOf(dir, s)
			b.Config = b.beside.config()
		}
	}
	for _, b := range groups {
		slices.SortFunc(b.Disks, func(x, y Disk) int { return strings.Compare(x.Name, y.Name) })
		d.Backups = append(d.Backups, *b)
	}
	slices.SortFunc(d.Backups, func(x, y Backup) int {
		return cmp.Or(x.Made.Compare(y.Made), strings.Compare(x.Kind, y.Kind), strings.Compare(x.Checkpoint, y.Checkpoint))
	})
}

// sorted are the files by their dates.
func (d *Folder) sorted(zone *time.Location) []*seenFile {
	var all []*seenFile
	for _, s := range d.streams {
		all = append(all, s)
	}
	slices.SortFunc(all, func(x, y *seenFile) int {
		a, _ := x.made(zone)
		b, _ := y.made(zone)
		return cmp.Or(a.Compare(b), strings.Compare(x.path, y.path))
	})
	return all
}

// add takes a file as the newest of a disk of a backup.
func (d *Folder) add(b *Backup, s *seenFile, zone *time.Location) {
	disk := Disk{Name: s.disk, folder: d}
	made, err := s.made(zone)
	if err == nil {
		err = s.check()
	}
	if err == nil && made.After(b.Made) {
		b.Made = made // of a file that can't be read nobody knows it
	}
	if err == nil {
		disk.Files, err = d.chain(s, zone)
	}
	if err != nil {
		b.Refused = errors.Join(b.Refused, err)
		disk.Files = []string{s.path}
	}
	if len(disk.Files) > 0 {
		first := d.streams[disk.Files[0]]
		disk.Raw = err == nil && first.stream == nil
	}
	if slices.ContainsFunc(b.Disks, func(o Disk) bool { return o.Name == s.disk }) {
		b.Refused = errors.Join(b.Refused, fmt.Errorf("%s: there is another of the disk beside it, and nobody knows which is meant", s.path))
		return
	}
	b.Disks = append(b.Disks, disk)
	if s.stream != nil && b.Checkpoint == "" {
		b.Checkpoint = s.Checkpoint
	}
}

// chain is what a file lies over, the full one first, and the file itself. Links tell, not times;
// but what lies below has to be older.
func (d *Folder) chain(s *seenFile, zone *time.Location) ([]string, error) {
	files := []string{s.path}
	for s.kind == "inc" || s.kind == "diff" {
		below, err := d.maker(s.disk, s.Parent)
		if err != nil {
			return nil, fmt.Errorf("%s is incremental since %.80q: %w", s.path, s.Parent, err)
		}
		newer, _ := s.made(zone)
		older, err := below.made(zone)
		if err == nil {
			err = below.check()
		}
		switch {
		case err != nil:
			return nil, fmt.Errorf("%s lies over a file that can't be read: %w", s.path, err)
		case !older.Before(newer):
			return nil, fmt.Errorf("%s lies over %s, which was made after it", s.path, below.path)
		case len(files) == maxChain:
			return nil, fmt.Errorf("%s lies over more than %d others", files[0], maxChain)
		}
		files, s = append(files, below.path), below
	}
	slices.Reverse(files)
	return files, nil
}

// maker is the file with which a checkpoint was made.
func (d *Folder) maker(disk, checkpoint string) (*seenFile, error) {
	var found *seenFile
	for _, s := range d.streams {
		full := s.kind == "full"
		if s.disk != disk || s.err != nil || s.stream == nil || s.Checkpoint != checkpoint || !full && (s.kind != "inc" || s.offline()) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("both %s and %s are of that checkpoint", found.path, s.path)
		}
		found = s
	}
	if found == nil {
		return nil, errors.New("no file of the disk was made with that checkpoint (it is gone, damaged, or a backup of the VM that was off has replaced it)")
	}
	return found, nil
}
