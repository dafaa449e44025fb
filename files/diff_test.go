// SPDX-License-Identifier: Apache-2.0

package files

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/guestfs"
)

func TestDifferences(t *testing.T) {
	t.Parallel()
	file := func(change func(*guestfs.Entry)) *guestfs.Entry {
		e := &guestfs.Entry{Info: guestfs.Info{Mode: unix.S_IFREG | 0o644, Size: 5, Modified: time.Unix(1, 0), Changed: time.Unix(2, 0), Inode: 7}}
		change(e)
		return e
	}
	folder := func(e *guestfs.Entry) { e.Mode = unix.S_IFDIR | 0o755 }
	for name, c := range map[string]struct {
		change func(*guestfs.Entry)
		how    Comparing
		want   string
	}{
		"nothing":          {func(*guestfs.Entry) {}, ContentNeeded, "[] false"},
		"all are read":     {func(*guestfs.Entry) {}, ContentAll, "[] true"},
		"another inode":    {func(e *guestfs.Entry) { e.Inode = 8 }, ContentNeeded, "[] false"},
		"size":             {func(e *guestfs.Entry) { e.Size = 6 }, ContentNeeded, "[size content] false"},
		"mtime":            {func(e *guestfs.Entry) { e.Modified = time.Unix(1, 1) }, ContentNeeded, "[mtime] true"},
		"mtime, unread":    {func(e *guestfs.Entry) { e.Modified = time.Unix(1, 1) }, ContentNone, "[content mtime] false"},
		"ctime":            {func(e *guestfs.Entry) { e.Changed = time.Unix(3, 0) }, ContentNeeded, "[ctime] true"},
		"mode and ctime":   {func(e *guestfs.Entry) { e.Mode ^= 0o22; e.Changed = time.Unix(3, 0) }, ContentNeeded, "[mode] true"},
		"owner":            {func(e *guestfs.Entry) { e.GID = 9 }, ContentNeeded, "[owner] false"},
		"type":             {folder, ContentAll, "[type] false"},
		"empty, and newer": {func(e *guestfs.Entry) { e.Size, e.Modified = 0, time.Unix(9, 0) }, ContentNeeded, "[size content mtime] false"},
	} {
		what, read := differences(file(func(*guestfs.Entry) {}), file(c.change), c.how)
		if got := fmt.Sprint(what, " ", read); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
	newer := file(func(e *guestfs.Entry) {
		folder(e)
		e.Modified, e.Changed, e.Size = time.Unix(9, 0), time.Unix(9, 0), 4096
	})
	if what, read := differences(file(folder), newer, ContentAll); len(what) > 0 || read {
		t.Errorf("a folder in which something changed: %v", what)
	}
}
