// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A file system that has no locks says so.
func TestLockErrors(t *testing.T) {
	t.Parallel()
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, errno := range []error{unix.ENOLCK, unix.EOPNOTSUPP, unix.EINVAL, unix.ENOSYS} {
		var none *NoLockError
		if err := lockError(file, lockRead, errno); !errors.As(err, &none) || !errors.Is(err, errno) || !strings.Contains(err.Error(), "--no-lock") {
			t.Errorf("%v: %v", errno, err)
		}
	}
	for _, errno := range []error{unix.EAGAIN, unix.EACCES} {
		var inUse *InUseError
		if err := lockError(file, lockRead, errno); !errors.As(err, &inUse) {
			t.Errorf("%v: %v", errno, err)
		}
	}
	var inUse *InUseError
	var none *NoLockError
	if err := lockError(file, lockRead, unix.EIO); errors.As(err, &inUse) || errors.As(err, &none) || !errors.Is(err, unix.EIO) {
		t.Errorf("EIO: %v", err)
	}
}

func TestHasLock(t *testing.T) {
	t.Parallel()
	at := func(b int64) func(string, int64, int64) bool {
		return func(kind string, start, end int64) bool { return kind != "FLOCK" && start <= b && b <= end }
	}
	info := "pos:\t0\nflags:\t02100000\nlock:\t1: OFDLCK  ADVISORY  READ -1 fd:00:1234 100 101\nlock:\t2: FLOCK  ADVISORY  WRITE 77 fd:00:1234 0 EOF\n"
	if !hasLock(info, at(101)) || hasLock(info, at(102)) || hasLock(info, at(99)) {
		t.Error("ranges are not understood")
	}
	if !hasLock(info, func(kind string, _, _ int64) bool { return kind == "FLOCK" }) {
		t.Error("the flock is not seen")
	}
	for _, bad := range []string{"", "lock:\n", "lock: 1: POSIX ADVISORY WRITE 1 fd:00:1 x 9\n", "lock: 1: POSIX ADVISORY WRITE 1 fd:00:1 0 x\n"} {
		if hasLock(bad, func(string, int64, int64) bool { return true }) {
			t.Errorf("%q", bad)
		}
	}
}

// Other runs of this program are named also where nobody may look at them.
func TestOwnHolders(t *testing.T) {
	t.Parallel()
	file, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if got := ownHolders(file); got != "" {
		t.Errorf("nobody holds it: %q", got)
	}
	if err := flock(file); err != nil {
		t.Fatal(err)
	}
	if got, want := ownHolders(file), fmt.Sprintf(", process %d)", os.Getpid()); !strings.HasSuffix(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// A file system without locks says so once, not once for each byte.
func TestNoLocksIsToldOnce(t *testing.T) {
	t.Parallel()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	calls := 0
	m := mode{own: shared.own, others: shared.others, fcntl: func(*os.File, int, *unix.Flock_t) error {
		calls++
		return unix.ENOLCK
	}}
	err = m.lock([]*os.File{f, f})
	var none *NoLockError
	if !errors.As(err, &none) || strings.Count(err.Error(), unix.ENOLCK.Error()) != 1 {
		t.Errorf("%v", err)
	}
	if calls < 2 {
		t.Errorf("%d calls", calls)
	}
}
