// SPDX-License-Identifier: Apache-2.0

package outfile

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/qemu"
)

func TestLockSeesEveryQEMU(t *testing.T) {
	t.Parallel()
	for what, args := range map[string][]string{"writer": nil, "reader": {"-r"}} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "i.raw")
			if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			testkit.StartNBD(t, append(args, "-f", "raw", path)...)
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = f.Close() }()
			var inUse *qemu.InUseError
			if err := lockExclusive(context.Background(), Linux(), f, false); !errors.As(err, &inUse) || inUse.Path != path {
				t.Errorf("a held image: %v", err)
			}
		})
	}
}

func TestLockKeepsOthersOut(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "i.raw")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := lockExclusive(context.Background(), Linux(), f, false); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"-f", "raw", "-c", "write 0 512", path}, {"-r", "-f", "raw", "-c", "read 0 512", path}} {
		if out, err := exec.Command("qemu-io", args...).CombinedOutput(); err == nil || !strings.Contains(string(out), "lock") {
			t.Errorf("qemu-io %q: %v %s", args, err, out)
		}
	}
	// As a program that is just being started would, it has the descriptor, too.
	dup, err := unix.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(dup) }()
	if err := release(f); err != nil {
		t.Fatal(err)
	}
	testkit.Tool(t, "qemu-io", "-f", "raw", "-c", "write 0 512", path)
}
