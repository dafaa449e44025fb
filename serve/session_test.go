// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/imgbackup/imgbackup/chain/chaintest"
)

// onDisk is a disk of some blocks, all 7, and a server of it.
func onDisk(t *testing.T) *world {
	t.Helper()
	h := chaintest.NewHistory(t)
	content := bytes.Repeat([]byte{7}, 4*blockSize)
	h.Commit(content, true, nil)
	w := &world{t: t, h: h, c: open(t, h, 0), path: filepath.Join(t.TempDir(), "vda.raw"), m: newModel(content)}
	w.begin()
	return w
}

// A write whose block could not be noted (a full file system that copies on write) has failed; one that
// is tried again, and answered, is there when the server is killed.
func TestWriteIsTriedAgain(t *testing.T) {
	t.Parallel()
	w := onDisk(t)
	if w.cow.session.mute {
		return // nothing is noted on this kernel
	}
	bits := w.cow.file.bits
	readOnly, err := os.Open(w.path + mapSuffix)
	if err != nil {
		t.Fatal(err)
	}
	defer readOnly.Close()
	w.cow.file.bits = readOnly
	p := w.m.page(20)
	copy(p, "what the guest wrote")
	if err := w.cow.WriteAt(context.Background(), p, 20*page); err == nil {
		t.Fatal("a write that was not noted was answered")
	}
	w.cow.file.bits = bits
	if err := w.cow.WriteAt(context.Background(), p, 20*page); err != nil {
		t.Fatal(err)
	}
	w.die(false)
	got := make([]byte, page)
	if err := w.cow.ReadAt(context.Background(), got, 20*page); err != nil || !bytes.Equal(got, p) {
		t.Errorf("what was answered is gone: %.30q, %v", got, err)
	}
	if err := w.cow.Close(); err != nil {
		t.Fatal(err)
	}
}

// What was written before a flush that failed may be lost, also for the next server: the kernel has told
// of it once, and takes the pages for written.
func TestLostAfterAFailedFlush(t *testing.T) {
	t.Parallel()
	w := onDisk(t)
	ctx := context.Background()
	flushed, lost := bytes.Repeat([]byte{1}, blockSize), bytes.Repeat([]byte{2}, blockSize)
	if err := errors.Join(w.cow.WriteAt(ctx, flushed, 0), w.cow.Flush(ctx), w.cow.WriteAt(ctx, lost, blockSize)); err != nil {
		t.Fatal(err)
	}
	w.cow.file.sync = func(*os.File) error { return syscall.EIO }
	if err := w.cow.Flush(ctx); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if err := w.cow.Close(); !errors.Is(err, syscall.EIO) {
		t.Errorf("it was closed as if nothing were: %v", err)
	}
	w.begin()
	if !w.cow.Lost() || w.cow.has(1) || !w.cow.has(0) {
		t.Errorf("lost %v; what may be lost is believed: %v; what was flushed: %v", w.cow.Lost(), w.cow.has(1), w.cow.has(0))
	}
	if err := w.cow.Close(); err != nil {
		t.Fatal(err)
	}
}

// That there is a session is durable before a guest writes: after a power cut the next server would else say
// that nothing is lost, and a guest on another host would go on.
func TestSessionIsDurable(t *testing.T) {
	t.Parallel()
	w := onDisk(t)
	f := w.cow.file
	if err := w.cow.session.end(); err != nil {
		t.Fatal(err)
	}
	durable := make([]byte, headerSize)
	f.sync = func(file *os.File) error {
		if file == f.bits {
			if _, err := f.bits.ReadAt(durable, w.cow.session.head); err != nil {
				return err
			}
		}
		return syncData(file)
	}
	if _, _, err := beginSession(f, 4); err != nil {
		t.Fatal(err)
	}
	if len(bytes.TrimRight(durable, "\x00")) == 0 {
		t.Error("nothing says that there is a session")
	}
	f.close()
}
