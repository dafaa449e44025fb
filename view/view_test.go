// SPDX-License-Identifier: Apache-2.0

package view

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/objstore"
)

// open opens checkpoint i for as long as the test runs.
func open(t testing.TB, h *chaintest.History, i int, o Options) *Checkpoint {
	t.Helper()
	c, err := Open(context.Background(), h.Repo, h.Checkpoints[i], nil, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// Reading on fetches ahead, each chunk once, however many want it.
func TestChunksAreFetchedOnce(t *testing.T) {
	t.Parallel()
	h := chaintest.NewHistory(t)
	content := make([]byte, 40<<20)
	rand.NewChaCha8([32]byte{1}).Read(content)
	h.Commit(content, true, nil)
	c := open(t, h, 0, Options{})
	maps := h.Store.Of("maps/")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			p := make([]byte, 256<<10)
			for off := 0; off < len(content); off += len(p) {
				if err := c.Disks[0].ReadAt(context.Background(), p, int64(off)); err != nil || !bytes.Equal(p, content[off:off+len(p)]) {
					t.Errorf("at %d: %v", off, err)
				}
			}
		})
	}
	wg.Wait()
	c.reader.chunks.work.Wait()
	if h.Store.Read() > int64(len(content))*11/10 {
		t.Errorf("%d bytes of packs were read for %d", h.Store.Read(), len(content))
	}
	// A read of its own for each piece of 256 KiB would be 160.
	if n := h.Store.Of("packs/"); n > 120 {
		t.Errorf("%d reads of packs: nothing was read ahead", n)
	}
	if n := h.Store.Of("maps/"); n != maps {
		t.Errorf("%d reads of maps after they were opened", n-maps)
	}
	if c.reader.chunks.held > 64<<20 {
		t.Errorf("%d bytes are kept", c.reader.chunks.held)
	}
}

// What is over the limit is given up, and comes back whole.
func TestCacheIsBounded(t *testing.T) {
	t.Parallel()
	h := chaintest.NewHistory(t)
	content := make([]byte, 8<<20)
	rand.NewChaCha8([32]byte{2}).Read(content)
	h.Commit(content, true, nil)
	c := open(t, h, 0, Options{Cache: 1 << 20})
	r := rand.New(rand.NewPCG(3, 4))
	for range 10 {
		chaintest.VerifyReads(t, r, c.Disks[0], content)
	}
	c.reader.chunks.work.Wait()
	if c.reader.chunks.held > 1<<20 {
		t.Errorf("%d bytes are kept", c.reader.chunks.held)
	}
}

// spoilt gives damaged bytes for one range of one object.
type spoilt struct {
	objstore.Store
	key      string
	off, end int64
	hit      func()
}

func (s *spoilt) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	r, err := s.Store.Get(ctx, key, offset, length)
	if err != nil || key != s.key || offset >= s.end || offset+length <= s.off {
		return r, err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	for i := max(s.off, offset); i < min(s.end, offset+length); i++ {
		b[i-offset] ^= 0xff
	}
	s.hit()
	return io.NopCloser(bytes.NewReader(b)), err
}

// Damage fails the reads that need what is damaged, and no others, also of those
// that are fetched together with it.
func TestDamageIsItsOwn(t *testing.T) {
	t.Parallel()
	h := chaintest.NewHistory(t)
	content := make([]byte, 24<<20)
	rand.NewChaCha8([32]byte{5}).Read(content)
	h.Commit(content, true, nil)
	c := open(t, h, 0, Options{})
	const bad = 9<<20 + 100
	entries, err := c.Disks[0].windows.next(context.Background(), bad, bad+1, 1)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	hits := 0
	e := entries[0]
	broken := *h.Repo
	broken.Store = &spoilt{Store: h.Repo.Store, key: archive.PackKey(e.Pack.Name), off: e.FrameOffset + 10, end: e.FrameOffset + 11, hit: func() {
		mu.Lock()
		hits++
		mu.Unlock()
	}}
	b, err := Open(context.Background(), &broken, h.Checkpoints[0], nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	p := make([]byte, 64<<10)
	failed := 0
	for off := int64(0); off < int64(len(content)); off += int64(len(p)) {
		err := b.Disks[0].ReadAt(context.Background(), p, off)
		chunk := off >= bad/(64<<10)*(64<<10) && off < bad/(64<<10)*(64<<10)+64<<10
		switch {
		case err == nil && !bytes.Equal(p, content[off:off+int64(len(p))]):
			t.Fatalf("wrong bytes at %d", off)
		case err == nil && chunk:
			t.Fatalf("the damage at %d was not told", off)
		case err != nil && !archive.IsDamage(err):
			t.Fatal(err)
		case err != nil:
			failed++
		}
	}
	if failed != 1 || hits == 0 {
		t.Errorf("%d reads failed, the damage was met %d times", failed, hits)
	}
}

// outage is a store that does not answer any more.
type outage struct {
	objstore.Store
	down chan struct{}
}

var errDown = errors.New("the store is down")

func (o *outage) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	select {
	case <-o.down:
		return nil, errDown
	default:
		return o.Store.Get(ctx, key, offset, length)
	}
}

// An outage is an error, not damage, and is not remembered.
func TestOutageIsNotKept(t *testing.T) {
	t.Parallel()
	h := chaintest.NewHistory(t)
	content := make([]byte, 2<<20)
	rand.NewChaCha8([32]byte{6}).Read(content)
	h.Commit(content, true, nil)
	o := &outage{Store: h.Repo.Store, down: make(chan struct{})}
	repo := *h.Repo
	repo.Store = o
	c, err := Open(context.Background(), &repo, h.Checkpoints[0], nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p := make([]byte, 4096)
	close(o.down)
	if err := c.Disks[0].ReadAt(context.Background(), p, 0); !errors.Is(err, errDown) || archive.IsDamage(err) {
		t.Errorf("while the store is down: %v", err)
	}
	o.down = make(chan struct{})
	if err := c.Disks[0].ReadAt(context.Background(), p, 0); err != nil || !bytes.Equal(p, content[:4096]) {
		t.Errorf("when it is back: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.Disks[0].ReadAt(ctx, p, 1<<20); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
