// SPDX-License-Identifier: Apache-2.0

package local

import (
	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// Linkless makes the store one on a file system without hard links; without
// RENAME_NOREPLACE, too, unless rename is true. asked returns how often a link and
// a rename without replacing were asked for.
func (l *Store) Linkless(rename bool) (asked func() (links, renames int)) {
	links, renames := 0, 0
	system := l.calls
	l.calls = calls{
		link: func(int, string, int, string, int) error { links++; return unix.ENOSYS },
		rename: func(olddir int, old string, newdir int, new string, flags uint) error {
			renames++
			if rename {
				return system.rename(olddir, old, newdir, new, flags)
			}
			return unix.EINVAL
		},
	}
	return func() (int, int) { return links, renames }
}

// OpenSyncing and CreateSyncing are Open and Create with another way to sync folders.
func OpenSyncing(dir string, f *sys.FolderSyncer) (*Store, error)   { return open(dir, f) }
func CreateSyncing(dir string, f *sys.FolderSyncer) (*Store, error) { return create(dir, f) }
