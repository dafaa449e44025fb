// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/qemu"
)

// lkChain makes base.qcow2 <- top.qcow2 of 1 MiB each.
func lkChain(t testing.TB) (base, top string) {
	t.Helper()
	dir := t.TempDir()
	base, top = filepath.Join(dir, "base.qcow2"), filepath.Join(dir, "top.qcow2")
	bmCreate(t, base, "", 1<<20)
	bmIO(t, base, "write -P 1 0 64k")
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
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
	nbd := testkit.StartNBD(t, "-f", "qcow2", top)
	holder := fmt.Sprintf("qemu-nbd, process %d", nbd.PID)
	lkWantInUse(t, c.Lock(t.Context(), 0), top, holder)
	lkWantInUse(t, qemu.ProbeWriter(top), top, holder)
	if err := qemu.ProbeWriter(base); err != nil {
		t.Fatalf("the backing file of a running VM has only readers: %v", err)
	}
	// A failed Lock leaves nothing behind that keeps the next writer away.
	nbd.End()
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
	testkit.HoldWithIO(t, base)
	lkWantInUse(t, c.Lock(t.Context(), 0), base, "qemu-io, process")
}

func TestLockSeesWriterOfDataFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, data := filepath.Join(dir, "d.qcow2"), filepath.Join(dir, "d.raw")
	bmCreate(t, path, "data_file="+data, 1<<20)
	c := bmOpen(t, path)
	testkit.StartNBD(t, "-f", "raw", data)
	lkWantInUse(t, c.Lock(t.Context(), 0), data, "qemu-nbd")
}

// Readers disturb nobody, a second run of ours included.
func TestLockBesideReaders(t *testing.T) {
	t.Parallel()
	_, top := lkChain(t)
	testkit.StartNBD(t, "-r", "-f", "qcow2", top)
	c, second := bmOpen(t, top), bmOpen(t, top)
	for _, chain := range []*Image{c, second, c} { // a second time is no error
		if err := chain.Lock(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Tool(t, "qemu-io", "-r", "-f", "qcow2", "-c", "read 0 64k", top)
	testkit.Tool(t, "qemu-img", "info", top)
	testkit.Tool(t, "qemu-img", "check", top)
	testkit.StartNBD(t, "-r", "-f", "qcow2", top)
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
	h := testkit.HoldWithIO(t, top)
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
	h.End()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
}

func TestLockWaitingIsCancelled(t *testing.T) {
	t.Parallel()
	_, top := lkChain(t)
	c := bmOpen(t, top)
	testkit.HoldWithIO(t, top)
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
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "raw", path, "1M")
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
