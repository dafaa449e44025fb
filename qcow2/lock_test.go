// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/qemu"
)

// lkQemuIO is a qemu-io that has images open until its end.
type lkQemuIO struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
}

// lkHold opens the image in a qemu-io with the arguments and waits until it has it.
func lkHold(t testing.TB, args ...string) *lkQemuIO {
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
	h := &lkQemuIO{cmd: cmd, stdin: stdin}
	t.Cleanup(func() { h.end(t) })
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

// end lets it close the image.
func (h *lkQemuIO) end(t testing.TB) {
	if h.cmd == nil {
		return
	}
	h.stdin.Close()
	if err := h.cmd.Wait(); err != nil {
		t.Errorf("qemu-io: %v", err)
	}
	h.cmd = nil
}

// lkServe starts a qemu-nbd that has the image open and serves nobody, and gives its process id.
func lkServe(t testing.TB, args ...string) int {
	t.Helper()
	dir := t.TempDir()
	pidFile := filepath.Join(dir, "pid")
	bmRun(t, "qemu-nbd", append([]string{"--fork", "-t", "--pid-file", pidFile, "-k", filepath.Join(dir, "s"), "-f", "qcow2"}, args...)...)
	text, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(text), &pid); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lkStop(t, pid) })
	return pid
}

// lkStop ends a qemu-nbd cleanly and waits until it has closed its images.
func lkStop(t testing.TB, pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return
	}
	if err != nil {
		t.Error(err)
		return
	}
	defer unix.Close(fd)
	// A qemu-nbd that has just said that it is ready may still forget a SIGTERM.
	for range 600 {
		if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			t.Error(err)
			return
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if err != nil && err != unix.EINTR {
			t.Error(err)
			return
		}
		if n == 1 {
			return
		}
	}
	t.Errorf("qemu-nbd %d does not end", pid)
}

// lkChain makes base.qcow2 <- top.qcow2 of 1 MiB each.
func lkChain(t testing.TB) (base, top string) {
	t.Helper()
	dir := t.TempDir()
	base, top = filepath.Join(dir, "base.qcow2"), filepath.Join(dir, "top.qcow2")
	bmCreate(t, base, "", 1<<20)
	bmIO(t, base, "write -P 1 0 64k")
	bmRun(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
	return base, top
}

func lkWantInUse(t testing.TB, err error, path, holder string) {
	t.Helper()
	var inUse *qemu.InUseError
	if !errors.As(err, &inUse) {
		t.Fatalf("got %v, want an InUseError", err)
	}
	if inUse.Path != path || !strings.Contains(inUse.Why, holder) {
		t.Fatalf("%q, %q; want %q, %q", inUse.Path, inUse.Why, path, holder)
	}
}

func TestLockSeesWriter(t *testing.T) {
	t.Parallel()
	base, top := lkChain(t)
	c := bmOpen(t, top)
	pid := lkServe(t, top)
	holder := fmt.Sprintf("qemu-nbd, process %d", pid)
	lkWantInUse(t, c.Lock(t.Context(), 0), top, holder)
	lkWantInUse(t, qemu.ProbeWriter(top), top, holder)
	if err := qemu.ProbeWriter(base); err != nil {
		t.Fatalf("the backing file of a running VM has only readers: %v", err)
	}
	// A failed Lock leaves nothing behind that keeps the next writer away.
	lkStop(t, pid)
	bmIO(t, top, "write 0 512")
	if err := qemu.ProbeWriter(top); err != nil {
		t.Fatal(err)
	}
	if err := c.Lock(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
}

// A writer of a backing file is one, too.
func TestLockSeesWriterOfBackingFile(t *testing.T) {
	t.Parallel()
	base, top := lkChain(t)
	c := bmOpen(t, top)
	lkHold(t, base)
	lkWantInUse(t, c.Lock(t.Context(), 0), base, "qemu-io, process")
}

func TestLockSeesWriterOfDataFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, data := filepath.Join(dir, "d.qcow2"), filepath.Join(dir, "d.raw")
	bmCreate(t, path, "data_file="+data, 1<<20)
	c := bmOpen(t, path)
	cmd := exec.Command("qemu-nbd", "-f", "raw", "-k", filepath.Join(dir, "s"), "--fork", "-t", "--pid-file", filepath.Join(dir, "pid"), data)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	text, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(text), &pid); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lkStop(t, pid) })
	lkWantInUse(t, c.Lock(t.Context(), 0), data, "qemu-nbd")
}

// Readers disturb nobody, a second run of ours included.
func TestLockBesideReaders(t *testing.T) {
	t.Parallel()
	_, top := lkChain(t)
	lkServe(t, "-r", top)
	c, second := bmOpen(t, top), bmOpen(t, top)
	for _, chain := range []*Image{c, second, c} { // a second time is no error
		if err := chain.Lock(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
	}
	bmRun(t, "qemu-io", "-r", "-f", "qcow2", "-c", "read 0 64k", top)
	bmRun(t, "qemu-img", "info", top)
	bmRun(t, "qemu-img", "check", top)
	lkServe(t, "-r", top)
}

// What we have locked nobody can open for writing until we unlock or close it.
func TestLockKeepsWritersOut(t *testing.T) {
	t.Parallel()
	for name, release := range map[string]func(*Image) error{"unlock": (*Image).Unlock, "close": (*Image).Close} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			base, top := lkChain(t)
			c, err := Open(top, Qcow2, OpenOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := c.Lock(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			for _, path := range []string{top, base} {
				for _, args := range [][]string{
					{"qemu-io", "-f", "qcow2", "-c", "write 0 512", path},
					{"qemu-img", "bitmap", "--add", "-f", "qcow2", path, "x"},
					{"qemu-img", "snapshot", "-c", "x", path},
					{"qemu-img", "resize", "-f", "qcow2", path, "2M"},
				} {
					out, err := bmTry(args[0], args[1:]...)
					if err == nil || !strings.Contains(out, `Failed to get "write" lock`) {
						t.Fatalf("%q: %v: %s", args, err, out)
					}
				}
			}
			if err := release(c); err != nil {
				t.Fatal(err)
			}
			bmIO(t, top, "write 0 512")
			bmIO(t, base, "write 0 512")
		})
	}
}

// A conflict that ends in time is none.
func TestLockWaits(t *testing.T) {
	t.Parallel()
	_, top := lkChain(t)
	c := bmOpen(t, top)
	h := lkHold(t, top)
	tried := make(chan struct{})
	result := make(chan error, 1)
	go func() {
		once := false
		result <- sys.Retry(t.Context(), time.Minute, func(err error) bool { return errors.As(err, new(*qemu.InUseError)) }, func() error {
			err := c.Lock(t.Context(), 0)
			if !once {
				once = true
				close(tried)
			}
			return err
		})
	}()
	<-tried
	h.end(t)
	if err := <-result; err != nil {
		t.Fatal(err)
	}
}

func TestLockWaitingIsCancelled(t *testing.T) {
	t.Parallel()
	_, top := lkChain(t)
	c := bmOpen(t, top)
	lkHold(t, top)
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- c.Lock(ctx, time.Hour) }()
	cancel()
	err := <-result
	var inUse *qemu.InUseError
	if !errors.Is(err, context.Canceled) || errors.As(err, &inUse) {
		t.Fatalf("got %v", err)
	}
	if err := c.Lock(ctx, 0); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}

// Bitmaps in use without a lock are those of a VM that has crashed.
func TestLockIgnoresBitmapsInUse(t *testing.T) {
	t.Parallel()
	m := bmLoad(t, bmTwo(t))
	m.put32(m.entries[0]+12, m.flags(0)|bitmapInUse)
	c := bmOpen(t, m.save(t, t.TempDir()))
	if err := c.Lock(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
}

func TestLockRawImage(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "d.raw")
	bmRun(t, "qemu-img", "create", "-q", "-f", "raw", path, "1M")
	c, err := Open(path, Raw, OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Lock(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if out, err := bmTry("qemu-io", "-f", "raw", "-c", "write 0 512", path); err == nil {
		t.Fatalf("a writer came in: %s", out)
	}
}

func TestFlockExcludesAnotherRun(t *testing.T) {
	t.Parallel()
	_, top := lkChain(t)
	image := bmOpen(t, top)
	first, err := qemu.FlockImage(t.Context(), top, 0)
	if err != nil {
		t.Fatal(err)
	}
	var busy *qemu.BusyError
	_, err = qemu.FlockImage(t.Context(), top, 0)
	if !errors.As(err, &busy) || !strings.Contains(busy.Why, fmt.Sprint("process ", os.Getpid())) {
		t.Fatalf("got %v", err)
	}
	// qemu-img does not mind, and giving up QEMU's locks does not release it.
	bmAdd(t, top, "x", 65536)
	if err := errors.Join(image.Lock(t.Context(), 0), image.Unlock()); err != nil {
		t.Fatal(err)
	}
	if _, err := qemu.FlockImage(t.Context(), top, 0); !errors.As(err, &busy) {
		t.Fatalf("got %v", err)
	}
	if same, err := first.Holds(image.Layers[0]); err != nil || !same {
		t.Fatalf("%v, %v", same, err)
	}
	other, _ := lkChain(t)
	if same, err := first.Holds(bmOpen(t, other).Layers[0]); err != nil || same {
		t.Fatalf("%v, %v", same, err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := qemu.FlockImage(t.Context(), top, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
}
