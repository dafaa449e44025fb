// SPDX-License-Identifier: Apache-2.0

package known

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

// Table is the table in a folder, as it was when it was opened or updated. It must be
// closed. Find and Drop may be called from several goroutines.
type Table struct {
	dir     string
	limit   int64
	runs    []*run // the largest first
	dropped atomic.Bool
}

const (
	listName  = "table" // names the runs
	listMagic = "imgbackup-known 1"
	lockName  = "lock" // is locked by who changes the table
	runPrefix = "run-"
	dirMode   = 0o700
	fileMode  = 0o600
	// openTries is how often a table is opened that others replace meanwhile.
	openTries = 5
	maxList   = 1 << 20
)

// Open opens the table in a folder, for at most limit bytes. What is no table, or a part
// of none, is made anew by the next update, and so is the folder.
func Open(dir string, limit int64) (*Table, error) {
	t := &Table{dir: dir, limit: limit}
	if err := t.load(); err != nil {
		return nil, err
	}
	now := time.Now()
	_ = os.Chtimes(filepath.Join(dir, listName), now, now) // which says only that it is of use
	return t, nil
}

// load opens the runs that the list names.
func (t *Table) load() error {
	for try := 1; ; try++ {
		list, err := readSmall(filepath.Join(t.dir, listName))
		if errors.Is(err, fs.ErrNotExist) {
			t.replace(nil)
			return nil
		}
		if err != nil {
			return err
		}
		runs, err := t.open(list)
		if errors.Is(err, fs.ErrNotExist) && try < openTries {
			continue // another has replaced it just now
		}
		if err != nil {
			for _, r := range runs {
				r.close()
			}
			runs = nil
		}
		t.replace(runs)
		return nil
	}
}

// readSmall reads a small file.
func readSmall(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxList {
		return nil, fmt.Errorf("%s is no list of a table of chunks", path)
	}
	return os.ReadFile(path)
}

// open opens the runs that a list names. One that is not whole is left out.
func (t *Table) open(list []byte) (runs []*run, err error) {
	lines := strings.Split(strings.TrimSuffix(string(list), "\n"), "\n")
	if lines[0] != listMagic {
		return nil, nil
	}
	for _, name := range lines[1:] {
		if !strings.HasPrefix(name, runPrefix) || strings.ContainsAny(name, "/") {
			return runs, errRun
		}
		r, err := openRun(filepath.Join(t.dir, name), name)
		if errors.Is(err, fs.ErrNotExist) {
			return runs, err
		}
		if err == nil {
			runs = append(runs, r)
		}
	}
	return runs, nil
}

// replace puts other runs in the place of those that are open.
func (t *Table) replace(runs []*run) {
	for _, r := range t.runs {
		r.close()
	}
	t.runs = runs
}

// Close closes the table.
func (t *Table) Close() { t.replace(nil) }

// Listed says which indexes are listed by now: what others said counts no more. It
// returns those that the table lacks.
func (t *Table) Listed(indexes []Digest) (lacking []Digest) {
	listed := make(map[Digest]bool, len(indexes)) // true: a run has it
	for _, name := range indexes {
		listed[name] = false
	}
	for _, r := range t.runs {
		for i, e := range r.indexes {
			has, is := listed[e.name]
			r.live[i] = is && !has // once is enough
			if is {
				listed[e.name] = true
			}
		}
	}
	for _, name := range indexes {
		if !listed[name] {
			lacking = append(lacking, name)
		}
	}
	return lacking
}

// Find calls try with the places that a chunk is said to be at, the likeliest first,
// until it returns true. They are promises: most often right.
func (t *Table) Find(chunk *Digest, try func(Place) bool) (found bool) {
	for i := len(t.runs) - 1; i >= 0 && !found && !t.dropped.Load(); i-- {
		r := t.runs[i]
		_, err := r.find(chunk, func(pack, offset, length uint32) bool {
			p, ok := r.pack(pack)
			if !ok {
				t.Drop()
				return false
			}
			if r.live[p.index] {
				found = try(Place{Pack: p.Pack, Offset: offset, Length: length})
			}
			return !found && !t.dropped.Load()
		})
		if err != nil {
			t.Drop()
		}
	}
	return found
}

// Drop gives the table up, since it is in doubt: it says nothing more, and the next to
// update it makes it anew.
func (t *Table) Drop() {
	if !t.dropped.Swap(true) {
		_ = os.Remove(filepath.Join(t.dir, listName)) // else it is found to be wrong once more
	}
}

// Dropped reports whether the table was given up.
func (t *Table) Dropped() bool { return t.dropped.Load() }

// Len is how many chunks the table has, also those that do not count any more.
func (t *Table) Len() (n int64) {
	for _, r := range t.runs {
		n += r.count
	}
	return n
}

// bytes is what the files of runs have together.
func bytesOf(runs []*run) (n int64) {
	for _, r := range runs {
		n += r.length
	}
	return n
}

// listOf is the list of runs.
func listOf(runs []*run) []byte {
	var b bytes.Buffer
	fmt.Fprintln(&b, listMagic)
	for _, r := range runs {
		fmt.Fprintln(&b, r.name)
	}
	return b.Bytes()
}
