// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/qemu"
)

// On a file system without flock, as NFS is for files that are opened to read, --no-lock
// goes on without, as the refusal says.
func TestNoFlock(t *testing.T) {
	t.Parallel()
	if !testkit.Refusing(t, unix.SYS_FLOCK, unix.EBADF) {
		return
	}
	l := newLab(t)
	l.create("vda", "4M")
	l.write("vda", "write -P 1 0 1M")
	req := l.request("c1", l.disk("vda"))
	var none *qemu.NoLockError
	if err := l.fails(req, backup.Hooks{}); !errors.As(err, &none) {
		t.Fatalf("got %v", err)
	}
	req.NoLock = true
	l.backupAs(req)
	l.write("vda", "write -P 2 1M 64k")
	next := l.request("c2", l.disk("vda"))
	next.NoLock = true
	l.trusted(l.backupAs(next), "c1")
	l.holds("vda", "c1", "c2")
	l.restoreAll()
}
