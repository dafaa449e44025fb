// SPDX-License-Identifier: Apache-2.0

package view

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/objstore"
)

// watched tells of every request for packs.
type watched struct {
	objstore.Store
	asked func()
}

func (w *watched) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if strings.HasPrefix(key, "packs/") {
		w.asked()
	}
	return w.Store.Get(ctx, key, offset, length)
}

// through is a repository that is read through w.
func through(h *chaintest.History, w *watched) *chain.Repository {
	w.Store = h.Repo.Store
	repo := *h.Repo
	repo.Store = w
	return &repo
}

// A map that names another large chunk for every sector does not fill the memory.
func TestHostileMapIsBounded(t *testing.T) {
	t.Parallel()
	const count = 300
	ctx := t.Context()
	h := chaintest.NewHistory(t)
	w, err := archive.NewWriter(ctx, h.Repo.Store, archive.WriterOptions{Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	m := w.NewMap("vda", count*archive.GridSize, true)
	for i := range int64(count) {
		err := m.Add(ctx, i*archive.GridSize, archive.GridSize, func(_ context.Context, buf []byte) ([]archive.Piece, error) {
			data := buf[:archive.GridSize]
			binary.BigEndian.PutUint64(data, uint64(i)+1)
			return []archive.Piece{{Offset: i * archive.GridSize, Length: archive.GridSize, Data: data}}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	refs, _, err := w.Finish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	large, err := archive.OpenMap(ctx, h.Repo.Store, refs[0], 0)
	if err != nil {
		t.Fatal(err)
	}
	var entries []archive.Entry
	for e, err := range large.Entries(ctx, 0, large.Size()) {
		if err != nil {
			t.Fatal(err)
		}
		e.Offset, e.Length = int64(len(entries))*512, 512
		entries = append(entries, e)
	}
	if len(entries) != count {
		t.Fatalf("%d entries", len(entries))
	}
	disk := &h.CommitMap(count*512, entries...).Disks[0]

	// Many clients at once, each of which wants more than there is memory for.
	const limit = 4 << 20
	var most int64
	for _, ahead := range []bool{true, false} {
		r := NewReader(ctx, h.Repo, Options{Cache: limit, NoAhead: !ahead})
		chunks := r.chunks
		chunks.bufs.New = func() any { // one more is needed
			chunks.mu.Lock()
			defer chunks.mu.Unlock()
			most = max(most, chunks.held)
			return new(gridBuffer)
		}
		d, err := r.Open(ctx, disk)
		if err != nil {
			t.Fatal(err)
		}
		var clients sync.WaitGroup
		for range 8 {
			clients.Go(func() {
				p := make([]byte, d.Size())
				if err := d.ReadAt(ctx, p, 0); err != nil {
					t.Error(err)
				}
				for i := range uint64(count) {
					if n := binary.BigEndian.Uint64(p[i*512:]); n != i+1 {
						t.Errorf("sector %d is %d", i, n)
						return
					}
				}
			})
		}
		clients.Wait()
		r.Close()
	}
	if most == 0 || most > limit {
		t.Errorf("%d bytes of chunks were in memory at once", most)
	}
}

// The same bytes in another pack are not damaged because this one is.
func TestDamageIsOfOnePlace(t *testing.T) {
	t.Parallel()
	h := chaintest.NewHistory(t)
	content := make([]byte, 128<<10)
	rand.NewChaCha8([32]byte{9}).Read(content)
	h.Commit(content[:64<<10], true, nil)
	elsewhere := chaintest.NewHistory(t) // where the first checkpoint's pack is not known
	elsewhere.Commit(content, true, nil)
	ctx := t.Context()
	first := func(h *chaintest.History) archive.Entry {
		l, err := OpenLayout(ctx, h.Repo, &h.Checkpoints[0].Disks[0])
		if err != nil {
			t.Fatal(err)
		}
		for e, err := range l.Entries(ctx, 0, l.Size()) {
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		return archive.Entry{}
	}
	bad, good := first(h), first(elsewhere)
	if _, err := archive.CopyObject(ctx, elsewhere.Repo.Store, h.Repo.Store, archive.PackKey(good.Pack.Name), good.Pack, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	h.CommitMap(good.Length, good)
	if bad.Chunk != good.Chunk || bad.Pack == good.Pack {
		t.Fatalf("%+v and %+v should be the same chunk in two packs", bad, good)
	}
	var hits atomic.Int64
	repo := *h.Repo
	repo.Store = &spoilt{Store: h.Repo.Store, key: archive.PackKey(bad.Pack.Name), off: bad.FrameOffset, end: bad.FrameOffset + 20, hit: func() { hits.Add(1) }}
	for _, order := range [][]int{{0, 1}, {1, 0}, {0, 1, 0, 1}} {
		r := NewReader(ctx, &repo, Options{})
		for _, i := range order {
			d, err := r.Open(ctx, &h.Checkpoints[i].Disks[0])
			if err != nil {
				t.Fatal(err)
			}
			p := make([]byte, 4096)
			err = d.ReadAt(ctx, p, 0)
			if i == 0 && !archive.IsDamage(err) || i == 1 && (err != nil || !bytes.Equal(p, content[:4096])) {
				t.Errorf("%v: checkpoint %d: %v", order, i, err)
			}
		}
		r.Close()
	}
	if hits.Load() == 0 {
		t.Error("the damage was not met")
	}
}

// What was prefetched is not asked for again, and what is dropped is.
func TestPrefetch(t *testing.T) {
	t.Parallel()
	h := chaintest.NewHistory(t)
	content := make([]byte, 8<<20)
	rand.NewChaCha8([32]byte{10}).Read(content)
	h.Commit(content, true, nil)
	var asked atomic.Int64
	repo := through(h, &watched{asked: func() { asked.Add(1) }})
	r := NewReader(t.Context(), repo, Options{NoAhead: true})
	defer r.Close()
	d, err := r.Open(t.Context(), &h.Checkpoints[0].Disks[0])
	if err != nil {
		t.Fatal(err)
	}
	var parts []bitmapstore.Run
	for off := int64(0); off < 8<<20; off += 1 << 20 {
		parts = append(parts, bitmapstore.Run{Start: off + 1000, End: off + 100000})
	}
	read := func() {
		t.Helper()
		for _, part := range parts {
			p := make([]byte, part.Len())
			if err := d.ReadAt(t.Context(), p, part.Start); err != nil || !bytes.Equal(p, content[part.Start:part.End]) {
				t.Fatalf("%v: %v", part, err)
			}
		}
	}
	if err := d.Prefetch(t.Context(), parts); err != nil {
		t.Fatal(err)
	}
	before := asked.Load()
	if before == 0 || before > 2 {
		t.Errorf("%d requests for what lies in one pack", before)
	}
	if read(); asked.Load() != before {
		t.Errorf("%d requests for what was prefetched", asked.Load()-before)
	}
	r.Drop()
	if r.chunks.held != 0 {
		t.Errorf("%d bytes are kept", r.chunks.held)
	}
	if read(); asked.Load() == before {
		t.Error("what was dropped is still there")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Prefetch(ctx, parts); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// Whoever gives up takes nothing from those who wait on.
func TestReaderThatGivesUp(t *testing.T) {
	t.Parallel()
	h := chaintest.NewHistory(t)
	content := bytes.Repeat([]byte{1, 2, 3, 4}, 16<<10)
	h.Commit(content, true, nil)
	asked, open := make(chan struct{}, 9), make(chan struct{})
	repo := through(h, &watched{asked: func() { asked <- struct{}{}; <-open }})
	r := NewReader(t.Context(), repo, Options{})
	defer r.Close()
	d, err := r.Open(t.Context(), &h.Checkpoints[0].Disks[0])
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 1000)
	stays := make(chan error, 1)
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := make(chan error, 1)
	go func() { gone <- d.ReadAt(ctx, make([]byte, 10), 0) }()
	<-asked
	go func() { stays <- d.ReadAt(t.Context(), p, 0) }()
	why := errors.New("no longer interested")
	cancel(why)
	if err := <-gone; !errors.Is(err, why) {
		t.Errorf("who gave up: %v", err)
	}
	close(open)
	if err := <-stays; err != nil || !bytes.Equal(p, content[:1000]) {
		t.Errorf("who stayed: %v", err)
	}
	if len(asked) != 0 {
		t.Errorf("%d more requests", len(asked))
	}
}
