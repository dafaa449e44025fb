// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/checkpoint"
	"github.com/imgbackup/imgbackup/chain"
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

	// What a run left is for a person to settle, who knows that it has ended.
	uuid := chain.NewUUID()
	l.img("bitmap", "--add", l.path("vda"), chain.BitmapName("lost", uuid))
	in := l.intent("vm", "lost", uuid, "vda")
	last := l.request("c3", l.disk("vda"))
	last.NoLock = true
	if notes := l.noted(last); !strings.Contains(notes, "stays to be settled") {
		t.Errorf("told: %q", notes)
	}
	l.holds("vda", "c2", "c3", "lost")
	if _, err := backup.Settle(t.Context(), l.repo, in, backup.SettleOptions{}); err != nil {
		t.Error(err)
	}
	l.holds("vda", "c2", "c3")

	doomed := checkpoint.DeleteRequest{Domain: "vm", Checkpoint: "c2"}
	if _, err := l.delete(doomed); !errors.As(err, &none) {
		t.Errorf("delete: %v", err)
	}
	doomed.NoLock = true
	if _, err := l.delete(doomed); err != nil {
		t.Error(err)
	}
	l.holds("vda", "c3")
}
