// SPDX-License-Identifier: Apache-2.0

package request

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/inherit"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
)

// ImportForm is what --disk takes in import.
const ImportForm = "TARGET=FILE,format=FORMAT[,keyfile=FILE][,increment=yes][,layers=yes][,backing=yes]"

// Import is what a person says of an import, in the words of the command line.
type Import struct {
	Domain      string
	Disks       []string // TARGET=FILE,format=FORMAT…, of each disk in the order of time
	Checkpoints []string // names of the points, in that order; none: made from the times
	Created     []string // when each was made; none: as the files' times say
	From        string   // what made them, for people; empty: files
	Compression string   // as of [Backup]
	LimitRate   string
	SkipRefused bool
	VirtNBD     string         // a folder of virtnbdbackup, in place of Disks
	Timezone    string         // of times that say none; empty: this host's
	Engine      backup.Request // what is the same for all points
	Notes       []string       // for a person, of what was found

	found string // the domain's name, as definitions say it
}

// Request reads the words.
func (im *Import) Request() (req inherit.Request, err error) {
	req = inherit.Request{Engine: im.Engine, SkipRefused: im.SkipRefused}
	if req.Engine.Level, err = archive.ParseLevel(im.Compression); err != nil {
		return req, usage.Errorf("--compression: %w", err)
	}
	if im.LimitRate != "" {
		if req.Engine.RateLimit, err = ParseRate(im.LimitRate); err != nil {
			return req, err
		}
	}
	find := im.points
	if im.VirtNBD != "" {
		find = im.fromVirtNBD
	}
	if req.Points, err = find(); err != nil {
		return req, err
	}
	if req.Engine.Domain = cmp.Or(im.Domain, im.found); req.Engine.Domain == "" {
		return req, usage.Errorf("which domain is it to be? Nothing that was found says so: import DOMAIN …")
	}
	return req, im.name(req.Points)
}

// points are the disks' files, the n-th of each disk at the n-th point in time.
func (im *Import) points() ([]inherit.Point, error) {
	var names []string
	of := make(map[string][]left)
	for _, value := range im.Disks {
		files, err := parseLeft(value, im.Engine.AllowDirs)
		if err != nil {
			return nil, usage.Errorf("--disk %q: %w", value, err)
		}
		name := files[0].Disk
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
		of[name] = append(of[name], files...)
	}
	if len(names) == 0 {
		return nil, usage.Errorf("nothing is named: --disk %s", ImportForm)
	}
	var points []inherit.Point
	for _, name := range names {
		files := of[name]
		if points == nil {
			points = make([]inherit.Point, len(files))
		}
		if len(files) != len(points) {
			return nil, usage.Errorf("disk %s has %d files and disk %s has %d: the n-th of each belongs to the n-th point in time", names[0], len(points), name, len(files))
		}
		for i := range files {
			err := files[i].settle(files[:i])
			if errors.Is(err, usage.ErrWrong) {
				return nil, &chain.DiskError{Disk: name, Err: err}
			}
			if files[i].refused = err; err != nil {
				points[i].Refused = &chain.DiskError{Disk: name, Err: err}
			}
			points[i].Disks = append(points[i].Disks, files[i].DiskRequest)
		}
	}
	for i := range points {
		points[i].From = im.From
		if im.From == "" {
			points[i].From = "files"
		}
	}
	return points, nil
}

// name gives the points names and times.
func (im *Import) name(points []inherit.Point) error {
	if n := len(im.Checkpoints); n > 0 && n != len(points) {
		return usage.Errorf("--checkpoint names %d checkpoints, and there are %d points in time", n, len(points))
	}
	if n := len(im.Created); n > 0 && n != len(points) {
		return usage.Errorf("--created has %d times, and there are %d points in time", n, len(points))
	}
	zone, err := im.zone()
	if err != nil {
		return err
	}
	for i := range points {
		if len(im.Checkpoints) > 0 {
			name := im.Checkpoints[i]
			if err := chain.CheckName(name); err != nil {
				return usage.Errorf("--checkpoint: %w", err)
			}
			if err := checkNewName(name); err != nil {
				return err
			}
			if slices.Contains(im.Checkpoints[:i], name) {
				return usage.Errorf("--checkpoint names %s twice", name)
			}
			points[i].Checkpoint = name
		}
		if len(im.Created) > 0 {
			made, err := parseTime(im.Created[i], zone)
			if err != nil {
				return usage.Errorf("--created: %w", err)
			}
			points[i].Made, points[i].Time = made, chain.TimeGiven
		}
	}
	return nil
}

// parseTime reads a time with a zone (RFC 3339), or in zone.
func parseTime(s string, zone *time.Location) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	for _, form := range []string{"2006-01-02 15:04:05", "2006-01-02T15:04:05", "2006-01-02 15:04", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(form, s, zone); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no time: want 2026-01-31, 2026-01-31 03:00 (both of this host's zone) or 2026-01-31T03:00:00+01:00", s)
}

// left is a file that somebody has left of a disk.
type left struct {
	backup.DiskRequest
	increment bool  // it lies over the file before it, whatever it says itself
	backing   bool  // what it names as its backing file is what lies below it
	refused   error // nobody has said what lies below it
}

// parseLeft reads the value of a --disk: a file, or the layers of one, the lowest first.
func parseLeft(value string, allow []string) ([]left, error) {
	o := splitOptions(value)
	if o.disk == "" || o.path == "" {
		return nil, fmt.Errorf("want %s", ImportForm)
	}
	if err := chain.CheckName(o.disk); err != nil {
		return nil, err
	}
	f := left{DiskRequest: backup.DiskRequest{Disk: o.disk, Path: o.path}}
	layers := false
	_, err := o.read([]option{
		{"format", func(val string) (err error) {
			f.Format, err = ParseFormat(val)
			return err
		}},
		text("keyfile", "file", &f.KeyFile),
		yesNo("increment", func(yes bool) { f.increment = yes }),
		yesNo("backing", func(yes bool) { f.backing = yes }),
		yesNo("layers", func(yes bool) { layers = yes }),
	})
	switch {
	case err != nil:
		return nil, err
	case f.Format == "":
		return nil, errors.New("no format: add format=raw, format=qcow2 or another (it is never guessed, since a guest can write any header into its disk)")
	case (f.increment || layers || f.backing) && f.Format != qcow2.Qcow2:
		return nil, fmt.Errorf("increment, layers and backing are for qcow2 images, not %s", f.Format)
	case f.increment && (layers || f.backing):
		return nil, errors.New("an increment lies over the file before it: increment=yes goes with neither layers=yes nor backing=yes")
	case layers:
		return layersOf(f, allow)
	}
	return []left{f}, nil
}

// layersOf are the images of a chain, the lowest first.
func layersOf(top left, allow []string) (all []left, err error) {
	image, err := qcow2.Open(top.Path, top.Format, qcow2.OpenOptions{AllowDirs: allow})
	if err != nil {
		return nil, err
	}
	for _, l := range slices.Backward(image.Layers) {
		one := top
		one.Path, one.Format, one.backing = l.Path, l.Format, true
		all = append(all, one)
	}
	return all, image.Close()
}

// settle finds out what lies below a file, whose disk has others before it. An error that is
// wrong usage is one of the words; others are about the file.
func (f *left) settle(before []left) error {
	if f.Format != qcow2.Qcow2 {
		return nil
	}
	if f.increment {
		if len(before) == 0 {
			return usage.Errorf("%s is the first of its disk, and an increment lies over one before it", f.Path)
		}
		last := before[len(before)-1]
		if last.refused != nil {
			return overRefused(f, &last)
		}
		f.putOver(&last)
		return nil
	}
	if f.backing {
		return nil
	}
	named, err := qcow2.BackingOf(f.Path)
	if err != nil || named.Path == "" {
		return err
	}
	if len(before) > 0 && sameFile(named.Path, filepath.Dir(f.Path), before[len(before)-1].Path) {
		last := &before[len(before)-1]
		switch {
		case last.refused != nil:
			return overRefused(f, last)
		case named.Format != "" && named.Format != last.Format:
			return fmt.Errorf("%s names %s as its backing file, of format %s, and it is said to be %s: nobody knows which is right", f.Path, last.Path, named.Format, last.Format)
		}
		f.putOver(last)
		return nil
	}
	return fmt.Errorf("%s names %q as its backing file, which is not the file before it: increment=yes if it lies over that one all the same, as libvirt's incremental backups do; "+
		"backing=yes if what it names is what it was made over, and unchanged since", f.Path, named.Path)
}

// putOver has a file read over another, which is read as it is by itself: over what a person has said
// lies below it, whatever its header says.
func (f *left) putOver(below *left) {
	f.Over = append([]qcow2.Named{{Path: below.Path, Format: below.Format}}, below.Over...)
}

// overRefused is why a file is refused that lies over one that is: it would be read over whatever that
// one's header names.
func overRefused(f, below *left) error {
	return fmt.Errorf("%s lies over %s, which is refused", f.Path, below.Path)
}

// sameFile reports whether a name, in dir if it is relative, is another file's.
func sameFile(name, dir, other string) bool {
	if !filepath.IsAbs(name) {
		name = dir + "/" + name
	}
	a, err := filepath.EvalSymlinks(name)
	if err != nil {
		return false
	}
	if a, err = filepath.Abs(a); err != nil {
		return false
	}
	b, err := filepath.EvalSymlinks(other)
	if err != nil {
		return false
	}
	b, err = filepath.Abs(b)
	return err == nil && a == b
}
