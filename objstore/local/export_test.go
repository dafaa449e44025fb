// SPDX-License-Identifier: Apache-2.0

package local

import "golang.org/x/sys/unix"

// Linkless makes the store one on a file system without hard links; without
// RENAME_NOREPLACE, too, unless rename is true. asked returns how often a link and
// a rename without replacing were asked for.
func (l *Store) Linkless(rename bool) (asked func() (links, renames int)) {
	links, renames := 0, 0
	system := l.calls
	l.calls = calls{
		link: func(int, string, int, string, int) error { links++; return unix.ENOSYS },
		sync: system.sync,
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
