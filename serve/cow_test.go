// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/nbd"
	"github.com/imgbackup/imgbackup/view"
)

// open opens checkpoint i for as long as the test runs.
func open(t testing.TB, h *chaintest.History, i int) *view.Checkpoint {
	t.Helper()
	c, err := view.Open(context.Background(), h.Repo, h.Checkpoints[i], nil, view.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

type seq = iter.Seq2[nbd.Extent, error]

// A disk with a scratch file reads like any disk that is written to, over any
// number of servers, and the checkpoint stays as it was.
func TestAnyWrites(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 2))
		path := filepath.Join(dir, strconv.Itoa(int(seed)))
		h := chaintest.NewHistory(t)
		h.Random(r, 2, 4096+r.Int64N(2<<20)/512*512)
		c := open(t, h, 1)
		d := c.Disks[0]
		size := d.Size()
		want := append([]byte(nil), h.Want[1]...)
		ctx := context.Background()
		for range 2 {
			cow, err := OpenCow(c, d, path, nil)
			if err != nil {
				t.Fatal(err)
			}
			for range 12 {
				off := r.Int64N(size)
				length := 1 + r.Int64N(min(size-off, 400<<10))
				switch r.IntN(5) {
				case 0:
					err = cow.WriteZeroes(ctx, off, length, r.IntN(2) == 0)
					clear(want[off : off+length])
				case 1:
					if err = cow.Trim(ctx, off, length); err == nil {
						err = cow.ReadAt(ctx, want[off:off+length], off) // as the device decides
					}
				case 2:
					err = cow.Flush(ctx)
				default:
					chaintest.Fill(r, want[off:off+length])
					err = cow.WriteAt(ctx, want[off:off+length], off)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			chaintest.VerifyReads(t, r, cow, want)
			chaintest.VerifyZeros(t, cow.zeros(ctx, 0, size), want)
			e, err := Export(ctx, c, d, cow, chain.StatesOf(h.Checkpoints[:1], d.Name))
			if err != nil {
				t.Fatal(err)
			}
			verifyExtents(t, e.Contexts[1].Extents(ctx, 0, size), h.Want[0], want)
			if err := cow.Close(); err != nil {
				t.Fatal(err)
			}
		}
		chaintest.VerifyReads(t, r, d, h.Want[1])
	}
}

// verifyExtents makes sure that what has no flag is as it was.
func verifyExtents(t *testing.T, extents seq, was, is []byte) {
	t.Helper()
	pos := int64(0)
	same := func(to int64) {
		if to > pos && (to > int64(len(was)) || !bytes.Equal(was[pos:to], is[pos:to])) {
			t.Fatalf("a change in bytes %d to %d is left out", pos, to-1)
		}
	}
	for e, err := range extents {
		if err != nil {
			t.Fatal(err)
		}
		same(e.Start)
		pos = e.End
	}
	same(int64(len(is)))
}

func TestConcurrentWritesToOneBlock(t *testing.T) {
	t.Parallel()
	h := chaintest.NewHistory(t)
	want := bytes.Repeat([]byte{9}, 4*blockSize)
	h.Commit(want, true, nil)
	c := open(t, h, 0)
	cow, err := OpenCow(c, c.Disks[0], filepath.Join(t.TempDir(), "cow"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer cow.Close()
	const part = 4096
	var wg sync.WaitGroup
	for i := range len(want) / part {
		if i%5 == 0 {
			continue // this part stays the checkpoint's
		}
		p := bytes.Repeat([]byte{byte(i)}, part)
		copy(want[i*part:], p)
		wg.Go(func() {
			if err := cow.WriteAt(context.Background(), p, int64(i*part)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got := make([]byte, len(want))
	if err := cow.ReadAt(context.Background(), got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("writes to one block were lost: %v", err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// What was flushed is there after a crash; a block of which only the data got to
// the medium reads as it did before.
func TestCrashAfterFlush(t *testing.T) {
	t.Parallel()
	h := chaintest.NewHistory(t)
	content := bytes.Repeat([]byte{7}, 10*blockSize+512)
	h.Commit(content, true, nil)
	c := open(t, h, 0)
	path := filepath.Join(t.TempDir(), "cow")
	cow, err := OpenCow(c, c.Disks[0], path, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	write := func(b byte, off int64) {
		t.Helper()
		if err := cow.WriteAt(ctx, bytes.Repeat([]byte{b}, 1000), off); err != nil {
			t.Fatal(err)
		}
	}
	write(1, blockSize-500)
	write(2, 10*blockSize-500)
	if err := cow.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	copyFile(t, path+mapSuffix, path+".kept")
	write(3, 5*blockSize)
	if err := cow.Close(); err != nil {
		t.Fatal(err)
	}
	copyFile(t, path+".kept", path+mapSuffix)
	if cow, err = OpenCow(c, c.Disks[0], path, nil); err != nil {
		t.Fatal(err)
	}
	defer cow.Close()
	want := bytes.Clone(content)
	copy(want[blockSize-500:], bytes.Repeat([]byte{1}, 1000))
	copy(want[10*blockSize-500:], bytes.Repeat([]byte{2}, 1000))
	got := make([]byte, len(want))
	if err := cow.ReadAt(ctx, got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("after the crash it reads otherwise: %v", err)
	}
	// The stale data of block 5 must not come up when it is taken over in part.
	write(4, 5*blockSize+4096)
	copy(want[5*blockSize+4096:], bytes.Repeat([]byte{4}, 1000))
	if err := cow.ReadAt(ctx, got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("stale data came up: %v", err)
	}
}

func TestScratchFilesThatAreRefused(t *testing.T) {
	t.Parallel()
	h := chaintest.NewHistory(t)
	content := bytes.Repeat([]byte{7}, 3*blockSize)
	h.Commit(content, true, nil)
	h.Commit(content, false, []chaintest.Change{{Start: 0, End: 512, Zero: true}})
	c := open(t, h, 0)
	other := open(t, h, 1)
	dir := t.TempDir()
	path := filepath.Join(dir, "cow")
	cow, err := OpenCow(c, c.Disks[0], path, nil)
	if err != nil {
		t.Fatal(err)
	}
	var inUse *InUseError
	if _, err := OpenCow(c, c.Disks[0], path, nil); !errors.As(err, &inUse) {
		t.Errorf("a second server: %v", err)
	}
	if err := cow.Close(); err != nil {
		t.Fatal(err)
	}
	refused := func(c *view.Checkpoint, path, why string) {
		t.Helper()
		cow, err := OpenCow(c, c.Disks[0], path, nil)
		if err == nil {
			cow.Close()
		}
		if err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v, want %q", path, err, why)
		}
	}
	refused(other, path, `belongs to disk "vda" of checkpoint "ca"`)
	damaged := func(name string, change func(path string) error) string {
		p := filepath.Join(dir, name)
		copyFile(t, path, p)
		copyFile(t, path+mapSuffix, p+mapSuffix)
		if err := change(p); err != nil {
			t.Fatal(err)
		}
		return p
	}
	refused(c, damaged("nomap", func(p string) error { return os.Remove(p + mapSuffix) }), "no scratch file")
	refused(c, damaged("short", func(p string) error { return os.Truncate(p, blockSize) }), "cut off")
	refused(c, damaged("shortmap", func(p string) error { return os.Truncate(p+mapSuffix, headerSize) }), "cut off")
	refused(c, damaged("nohead", func(p string) error { return os.Truncate(p+mapSuffix, 100) }), "cut off")
	refused(c, damaged("nonsense", func(p string) error {
		return os.WriteFile(p+mapSuffix, bytes.Repeat([]byte("x"), headerSize+1), 0o600)
	}), "is not the map")
	refused(c, damaged("link", func(p string) error { return errors.Join(os.Remove(p), os.Symlink(path, p)) }), "symbolic link")
	refused(c, dir, "directory")
	h.CommitMap(maxCowSize + 512)
	refused(open(t, h, 2), filepath.Join(dir, "huge"), "more than")
	if _, err := os.Stat(filepath.Join(dir, "huge")); err == nil {
		t.Error("a scratch file was made for a disk that is too large")
	}
}

// A scratch file that cannot be made leaves nothing that is in the next try's way.
func TestScratchFileThatCannotBeMade(t *testing.T) {
	t.Parallel()
	h := chaintest.NewHistory(t)
	h.Commit(bytes.Repeat([]byte{7}, blockSize), true, nil)
	c := open(t, h, 0)
	for _, before := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "cow")
		if before {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		inTheWay := filepath.Join(path+mapSuffix+".new", "x")
		if err := os.MkdirAll(inTheWay, 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenCow(c, c.Disks[0], path, nil); err == nil {
			t.Fatal("it was made")
		}
		fi, err := os.Stat(path)
		if before && (err != nil || fi.Size() != 0) || !before && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("there before: %v; afterwards: %v, %v", before, fi, err)
		}
		if err := os.RemoveAll(filepath.Dir(inTheWay)); err != nil {
			t.Fatal(err)
		}
		cow, err := OpenCow(c, c.Disks[0], path, nil)
		if err != nil {
			t.Fatalf("the next try: %v", err)
		}
		if err := cow.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Where its folder cannot be synced a scratch file is made all the same, and that is
// told; a medium that fails leaves nothing.
func TestCowInAFolderThatCannotBeSynced(t *testing.T) {
	t.Parallel()
	h := &cowHeader{Format: cowFormat, Version: 1, Disk: "vda", Size: 4 << 20, Block: blockSize}
	for _, answer := range []error{syscall.EINVAL, syscall.EIO} {
		dir := t.TempDir()
		calls := 0
		var notes []string
		folders := &sys.FolderSyncer{
			Note: func(msg string) { notes = append(notes, msg) },
			Call: func(*os.File) error { calls++; return answer },
		}
		f, _, err := openCowFile(filepath.Join(dir, "cow"), h, h.Size/blockSize, folders)
		if calls == 0 {
			t.Errorf("%v: no folder was synced", answer)
		}
		if answer == syscall.EIO {
			if names := testkit.Names(t, dir); !errors.Is(err, answer) || len(notes) != 0 || len(names) != 0 {
				t.Errorf("%v, notes %q, left %q", err, notes, names)
			}
			continue
		}
		if err != nil || len(notes) != 1 {
			t.Fatalf("%v, notes %q", err, notes)
		}
		f.close()
	}
}
