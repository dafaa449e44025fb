// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"cmp"
	"crypto/rand"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/imgbackup/imgbackup/internal/sys"
)

const tempPrefix = "new-"

func tempName() string { return tempPrefix + rand.Text() }

// trimShare of the limit is how much a program writes before it looks how much there is.
const trimShare = 16

// wrote counts what was written, and keeps the folder within its limit.
func (d *Dir) wrote(n int64) {
	d.mu.Lock()
	first := d.fresh < 0
	d.fresh = max(d.fresh, 0) + n
	trim := first || d.fresh > d.limit/trimShare
	if trim {
		d.fresh = 0
	}
	d.mu.Unlock()
	if trim {
		d.trim()
	}
}

// used is something that can be removed.
type used struct {
	path  string
	size  int64
	at    time.Time // when it was last of use
	table bool      // a folder of whoever keeps it by rules of his own
}

// trim removes what was not used for longest until the folder is within its limit, with
// some room to write. Nothing depends on the times being right.
func (d *Dir) trim() {
	repositories, err := filepath.Glob(filepath.Join(d.path, "*-*"))
	if err != nil {
		return
	}
	var all []used
	var total int64
	for _, r := range repositories {
		sweep(filepath.Join(r, tempFolder))
		for _, folder := range []string{objectsFolder, manifestsFolder, listingsFolder} {
			files(filepath.Join(r, folder), func(path string, info fs.FileInfo) {
				all = append(all, used{path: path, size: info.Size(), at: info.ModTime()})
			})
		}
		table := used{path: filepath.Join(r, tablesFolder), table: true}
		files(table.path, func(_ string, info fs.FileInfo) {
			table.size += info.Size()
			if info.ModTime().After(table.at) {
				table.at = info.ModTime()
			}
		})
		all = append(all, table)
	}
	for i := range all {
		total += all[i].size
	}
	slices.SortFunc(all, func(a, b used) int {
		if a.table != b.table { // what costs most to make again goes last
			return cmp.Compare(b2i(a.table), b2i(b.table))
		}
		return a.at.Compare(b.at)
	})
	for _, u := range all {
		if total <= d.limit-d.limit/trimShare {
			return
		}
		if u.size > 0 && os.RemoveAll(u.path) == nil {
			total -= u.size
		}
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// files calls fn for each file in a folder, as far as it can be read.
func files(folder string, fn func(path string, info fs.FileInfo)) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return // it is not there, or going
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			fn(filepath.Join(folder, e.Name()), info)
		}
	}
}

// sweep removes what killed programs have left.
func sweep(temps string) {
	dir, err := os.Open(temps)
	if err != nil {
		return
	}
	defer func() { _ = dir.Close() }() // only read
	_ = sys.Sweep(dir, func(name string, folder bool) bool {
		return !folder && strings.HasPrefix(name, tempPrefix)
	})
}

// touchAfter is how old the time of the last use may be.
const touchAfter = time.Hour

// touch notes that a file was of use.
func touch(path string, info fs.FileInfo) {
	if now := time.Now(); now.Sub(info.ModTime()) > touchAfter {
		_ = os.Chtimes(path, time.Time{}, now) // it goes earlier, then
	}
}
