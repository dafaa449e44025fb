// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// NBD is a qemu-nbd that has images open, as a VM has. It ends with the test.
type NBD struct {
	Socket string // it serves whoever comes here
	PID    int

	t   testing.TB
	end sync.Once
}

// StartNBD starts a qemu-nbd with the arguments, of which the last names the image. It
// has the image open when it is returned.
func StartNBD(t testing.TB, args ...string) *NBD {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	n := &NBD{Socket: filepath.Join(dir, "s"), t: t}
	pidFile := filepath.Join(dir, "pid")
	Tool(t, "qemu-nbd", append([]string{"--fork", "-t", "-e", "16", "--pid-file", pidFile, "-k", n.Socket}, args...)...)
	text, err := os.ReadFile(pidFile)
	if err == nil {
		_, err = fmt.Sscan(string(text), &n.PID)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.End)
	return n
}

// End lets it close its images cleanly and waits until it has. Once more is no harm.
func (n *NBD) End() {
	n.t.Helper()
	n.end.Do(func() {
		if err := terminate(n.PID); err != nil {
			n.t.Errorf("ending qemu-nbd %d: %v", n.PID, err)
		}
	})
}

// terminate ends a process that is not our child, and waits for its end.
func terminate(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	// A qemu-nbd that has just said that it is ready may still forget a SIGTERM.
	for range 600 {
		if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n == 1 {
			return nil
		}
	}
	return errors.New("it does not end")
}

// Hold is a qemu-io that has images open. It ends with the test.
type Hold struct {
	t     testing.TB
	cmd   *exec.Cmd
	stdin io.WriteCloser
}

// HoldWithIO opens a qcow2 image of some MiB in a qemu-io with the arguments, and waits
// until it has it.
func HoldWithIO(t testing.TB, args ...string) *Hold {
	t.Helper()
	cmd := exec.Command("qemu-io", append([]string{"-f", "qcow2"}, args...)...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h := &Hold{t: t, cmd: cmd, stdin: stdin}
	t.Cleanup(h.End)
	if _, err := io.WriteString(stdin, "length\n"); err != nil {
		t.Fatal(err)
	}
	// It answers when it has opened the image.
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if strings.Contains(lines.Text(), "MiB") {
			return h
		}
	}
	t.Fatalf("qemu-io %q did not open the image", args)
	return nil
}

// End lets it close the image. Once more is no harm.
func (h *Hold) End() {
	if h.cmd == nil {
		return
	}
	_ = h.stdin.Close()
	if err := h.cmd.Wait(); err != nil {
		h.t.Errorf("qemu-io: %v", err)
	}
	h.cmd = nil
}
