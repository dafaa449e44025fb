// SPDX-License-Identifier: Apache-2.0

package objstoretest

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
)

// Disk knows of a folder what would be left of it after a power cut, at each moment:
// content and names that were synced for sure, and of what was written, given a name or
// removed since then any part. Its Sync is to be called in place of fsync(2).
type Disk struct {
	t    *testing.T
	root string
	// Lies, if not nil, reports whether a sync does nothing: of a folder, or of a file.
	Lies func(folder bool) bool

	mu      sync.Mutex
	durable names
	files   map[uint64]*diskFile // by inode
	step    int
	cuts    []Cut
}

// names are those in folders, by their paths below the root: of files, or nil for a folder.
type names map[string]map[string]*diskFile

// diskFile is a file that stays open, so that none gets its inode.
type diskFile struct {
	open    *os.File
	content []byte // that is durable
	synced  bool
}

// Cut is a moment in which the power may be cut.
type Cut struct {
	Step             int // how often Next had been called
	durable, present names
}

// NewDisk watches a folder, all of which is durable now.
func NewDisk(t *testing.T, root string) *Disk {
	t.Helper()
	d := &Disk{t: t, root: root, files: make(map[uint64]*diskFile)}
	d.mu.Lock()
	defer d.mu.Unlock()
	all, err := d.look()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range d.files {
		if err := f.sync(); err != nil {
			t.Fatal(err)
		}
	}
	d.durable = all
	t.Cleanup(func() {
		for _, f := range d.files {
			_ = f.open.Close() // only read
		}
	})
	return d
}

// Sync is fsync(2) of a file or a folder. The power may be cut just before it.
func (d *Disk) Sync(f *os.File) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	present, err := d.look()
	if err != nil {
		return err
	}
	d.cut(present)
	switch {
	case d.Lies != nil && d.Lies(info.IsDir()):
		return nil
	case !info.IsDir():
		file, err := d.file(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), info)
		if err != nil {
			return err
		}
		return file.sync()
	}
	folder, err := filepath.Rel(d.root, f.Name())
	if err != nil {
		return err
	}
	d.durable = maps.Clone(d.durable)
	d.durable[path.Clean(folder)] = present[path.Clean(folder)]
	return nil
}

// Next says that something is done: what it has synced is what counts from now on.
func (d *Disk) Next() {
	d.t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.step++
	present, err := d.look()
	if err != nil {
		d.t.Fatal(err)
	}
	d.cut(present)
}

// Cuts are the moments until now.
func (d *Disk) Cuts() []Cut {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cuts
}

func (d *Disk) cut(present names) { d.cuts = append(d.cuts, Cut{d.step, d.durable, present}) }

// look returns the names that there are now, but those of temporary files, which are no
// objects.
func (d *Disk) look() (names, error) {
	all := make(names)
	err := filepath.WalkDir(d.root, func(at string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		rel, rerr := filepath.Rel(d.root, at)
		if err := errors.Join(err, rerr); err != nil {
			return err
		}
		if rel == objstore.TempFolder {
			return filepath.SkipDir
		}
		if e.IsDir() {
			all[rel] = make(map[string]*diskFile)
		}
		if rel == "." {
			return nil
		}
		var file *diskFile
		if !e.IsDir() {
			info, err := e.Info()
			if err == nil {
				file, err = d.file(at, info)
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
		}
		all[path.Dir(rel)][path.Base(rel)] = file
		return nil
	})
	return all, err
}

// file is what is known of the file at a path.
func (d *Disk) file(at string, info fs.FileInfo) (*diskFile, error) {
	ino := info.Sys().(*syscall.Stat_t).Ino
	if f := d.files[ino]; f != nil {
		return f, nil
	}
	open, err := os.Open(at)
	if err != nil {
		return nil, err
	}
	f := &diskFile{open: open}
	d.files[ino] = f
	return f, nil
}

func (f *diskFile) read() ([]byte, error) {
	info, err := f.open.Stat()
	if err != nil {
		return nil, err
	}
	data := make([]byte, info.Size())
	_, err = f.open.ReadAt(data, 0)
	return data, err
}

func (f *diskFile) sync() (err error) {
	f.content, err = f.read()
	f.synced = err == nil
	return err
}

// Left returns objects that may be left after the cut, by their keys. keep decides of each
// name that was changed since its folder was synced whether the change is on the disk; it
// is asked in the same order each time. r decides how much there is of a content that was not synced.
func (c *Cut) Left(r *rand.Rand, keep func() bool) (map[string][]byte, error) {
	left := make(map[string][]byte)
	return left, c.leftIn(".", r, keep, left)
}

func (c *Cut) leftIn(folder string, r *rand.Rand, keep func() bool, left map[string][]byte) error {
	durable, present := c.durable[folder], c.present[folder]
	all := maps.Clone(durable)
	if all == nil {
		all = make(map[string]*diskFile)
	}
	maps.Copy(all, present)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		was, isDurable := durable[name]
		is, isPresent := present[name]
		if (was != is || isDurable != isPresent) && keep() {
			was, isDurable = is, isPresent
		}
		at := path.Join(folder, name)
		switch {
		case !isDurable:
		case was == nil:
			if err := c.leftIn(at, r, keep, left); err != nil {
				return err
			}
		case was.synced:
			left[at] = was.content
		default:
			data, err := was.read()
			if err != nil {
				return err
			}
			left[at] = data[:len(data)*r.IntN(3)/2]
		}
	}
	return nil
}
