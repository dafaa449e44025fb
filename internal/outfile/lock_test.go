// SPDX-License-Identifier: Apache-2.0

package outfile

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/imgbackup/imgbackup/qcow2"
)

// tool runs a program that must succeed, and returns its standard output.
func tool(t rapid.TB, name string, args ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, out, stderr.String())
	}
	return string(out)
}

// holdWithNBD lets a qemu-nbd hold an image until the test ends.
func holdWithNBD(t *testing.T, path string, args ...string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	pidFile := filepath.Join(dir, "pid")
	tool(t, "qemu-nbd", append(args, "--fork", "-t", "--pid-file", pidFile, "-k", filepath.Join(dir, "s"), path)...)
	t.Cleanup(func() {
		data, err := os.ReadFile(pidFile)
		if err != nil {
			t.Error(err)
			return
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
		if err != nil {
			t.Error(err)
			return
		}
		// SIGTERM is lost on one that has only just forked.
		_ = syscall.Kill(pid, syscall.SIGKILL)
		_ = os.RemoveAll(dir)
	})
}

func TestLockSeesEveryQEMU(t *testing.T) {
	t.Parallel()
	for what, args := range map[string][]string{"writer": nil, "reader": {"-r"}} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "i.raw")
			if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			holdWithNBD(t, path, append(args, "-f", "raw")...)
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = f.Close() }()
			var inUse *qcow2.InUseError
			if err := lockExclusive(context.Background(), f, false); !errors.As(err, &inUse) || inUse.Path != path {
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
	if err := lockExclusive(context.Background(), f, false); err != nil {
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
	tool(t, "qemu-io", "-f", "raw", "-c", "write 0 512", path)
}
