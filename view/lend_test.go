// SPDX-License-Identifier: Apache-2.0

package view

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/imgbackup/imgbackup/chain/chaintest"
)

// What is lent are the disk's bytes, zeros among them. It stays as it is while others read all of
// the disk, and takes a quarter of the memory at most: then nothing is lent, and reads go on.
func TestLend(t *testing.T) {
	t.Parallel()
	const size, step, limit = 24 << 20, 256 << 10, 12 << 20
	h := chaintest.NewHistory(t)
	content := make([]byte, size)
	rand.NewChaCha8([32]byte{13}).Read(content)
	clear(content[step/2 : step*2])
	clear(content[size-step:])
	h.Commit(content, true, nil)
	c := open(t, h, 0, Options{Cache: limit})
	defer c.Close()
	d, cache := c.Disks[0], c.reader.chunks
	type loan struct {
		off      int64
		pieces   [][]byte
		giveBack func()
	}
	var loans []loan
	refused := 0
	for off := int64(0); off < size; off += step {
		if pieces, giveBack := d.Lend(t.Context(), off, step); pieces != nil {
			loans = append(loans, loan{off, pieces, giveBack})
		} else {
			refused++
		}
	}
	pieces, giveBack := d.Lend(t.Context(), step, step) // zeros need no memory
	if pieces == nil || !bytes.Equal(slices.Concat(pieces...), content[step:2*step]) {
		t.Error("zeros are not lent")
	}
	giveBack()
	readIn(t, d, content, 4, step, steps(0, size, step))
	cache.mu.Lock()
	if cache.lent < limit/4-step || cache.lent > limit/4 || cache.inUse < cache.lent || cache.held > limit {
		t.Errorf("%d bytes are lent, %d in use, %d held of %d", cache.lent, cache.inUse, cache.held, limit)
	}
	cache.mu.Unlock()
	if len(loans) == 0 || refused == 0 {
		t.Fatalf("%d loans, %d were refused", len(loans), refused)
	}
	for _, l := range loans {
		if !bytes.Equal(slices.Concat(l.pieces...), content[l.off:l.off+step]) {
			t.Errorf("what was lent at %d has changed", l.off)
		}
		l.giveBack()
	}
	cache.work.Wait() // what reads ahead
	cache.mu.Lock()
	defer cache.mu.Unlock()
	if cache.lent != 0 || cache.inUse != 0 {
		t.Errorf("%d bytes are lent, %d in use", cache.lent, cache.inUse)
	}
}

// Damage, and what is lost, is for a read to tell: nothing is lent there.
func TestLendDamaged(t *testing.T) {
	t.Parallel()
	h := chaintest.NewHistory(t)
	content := make([]byte, 256<<10)
	rand.NewChaCha8([32]byte{14}).Read(content)
	h.Commit(content, true, nil)
	hits := 0
	repo := *h.Repo
	for info := range h.Repo.Store.List(t.Context(), "packs/") {
		repo.Store = &spoilt{Store: h.Repo.Store, key: info.Key, off: 0, end: 20, hit: func() { hits++ }}
	}
	r := NewReader(t.Context(), &repo, Options{NoAhead: true})
	defer r.Close()
	d, err := r.Open(t.Context(), &h.Checkpoints[0].Disks[0])
	if err != nil {
		t.Fatal(err)
	}
	if pieces, _ := d.Lend(t.Context(), 0, 4096); pieces != nil || hits == 0 {
		t.Errorf("damage is lent, or was not met (%d)", hits)
	}
	pieces, giveBack := d.Lend(t.Context(), 128<<10, 4096)
	if pieces == nil || !bytes.Equal(slices.Concat(pieces...), content[128<<10:][:4096]) {
		t.Error("what is sound is not lent")
	} else {
		giveBack()
	}
}
