// SPDX-License-Identifier: Apache-2.0

package view

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/imgbackup/imgbackup/chain/chaintest"
)

// readIn reads parts of a disk in some order, as a client does that has many requests under
// way, and compares them.
func readIn(t *testing.T, d *Disk, want []byte, atOnce, size int, offsets []int64) {
	t.Helper()
	jobs := make(chan int64)
	var clients sync.WaitGroup
	for range atOnce {
		clients.Go(func() {
			p := make([]byte, size)
			for off := range jobs {
				if err := d.ReadAt(t.Context(), p, off); err != nil || !bytes.Equal(p, want[off:off+int64(size)]) {
					t.Errorf("at %d: %v", off, err)
				}
			}
		})
	}
	for _, off := range offsets {
		jobs <- off
	}
	close(jobs)
	clients.Wait()
}

// steps are offsets from start up to end.
func steps(start, end, size int64) (all []int64) {
	for off := start; off+size <= end; off += size {
		all = append(all, off)
	}
	return all
}

// Whoever reads on gets every chunk once and many with one request, however much larger the
// disk is than the cache, in several places at once and with requests out of order.
func TestReadingOn(t *testing.T) {
	t.Parallel()
	const size, step = 32 << 20, 256 << 10
	h := chaintest.NewHistory(t)
	content := make([]byte, size)
	rand.NewChaCha8([32]byte{11}).Read(content)
	h.Commit(content, true, nil)
	var both []int64 // in two halves
	for i, off := range steps(0, size/2, step) {
		both = append(both, off, size/2+int64(i)*step)
	}
	shuffled := steps(0, size, step)
	for i := 0; i+8 <= len(shuffled); i += 8 { // as a connection's requests overtake one another
		part := shuffled[i : i+8]
		rand.New(rand.NewPCG(uint64(i), 1)).Shuffle(8, func(i, j int) { part[i], part[j] = part[j], part[i] })
	}
	for name, c := range map[string]struct {
		atOnce  int
		offsets []int64
	}{
		"one request at a time": {1, steps(0, size, step)},
		"many at once":          {16, steps(0, size, step)},
		"in two places":         {8, both},
		"out of order":          {1, shuffled},
	} {
		t.Run(name, func(t *testing.T) {
			c1 := open(t, h, 0, Options{Cache: 12 << 20})
			bytesBefore, before := h.Store.Read(), h.Store.Of("packs/")
			readIn(t, c1.Disks[0], content, c.atOnce, step, c.offsets)
			c1.Close()
			if n := h.Store.Read() - bytesBefore; n > size*11/10 {
				t.Errorf("%d bytes were read for %d", n, size)
			}
			// One for each piece would be 128. (At the beginning some are.)
			if n := h.Store.Of("packs/") - before; n > 100 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

// Whoever reads here and there causes nothing but what is read.
func TestReadingHereAndThere(t *testing.T) {
	t.Parallel()
	const size = 32 << 20
	h := chaintest.NewHistory(t)
	content := make([]byte, size)
	rand.NewChaCha8([32]byte{12}).Read(content)
	h.Commit(content, true, nil)
	var offsets []int64
	for i := range int64(16) { // backwards
		offsets = append(offsets, size-(i+1)*(2<<20))
	}
	c := open(t, h, 0, Options{})
	before := h.Store.Read()
	readIn(t, c.Disks[0], content, 1, 4096, offsets)
	c.Close()
	if n := h.Store.Read() - before; n > 16*(130<<10)+1<<20 {
		t.Errorf("%d bytes were read for 16 reads", n)
	}
}

// Streams that were not read for long give their memory to others.
func TestStaleStreams(t *testing.T) {
	t.Parallel()
	h := chaintest.NewHistory(t)
	h.Commit(make([]byte, 1<<20), true, nil)
	c := open(t, h, 0, Options{})
	a, d := c.reader.ahead, c.Disks[0]
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reads = 2 * staleReads
	for i := range int64(4) {
		s := &stream{disk: d, read: aheadFrom, held: a.most / 3}
		if i == 1 {
			s.last = a.reads
		}
		a.streams = append(a.streams, s)
		a.held += s.held
	}
	live := a.streams[1]
	a.fillAll()
	if len(a.streams) > 3 || !slices.Contains(a.streams, live) || live.dropped || a.held >= a.most {
		t.Errorf("%d streams hold %d bytes of %d", len(a.streams), a.held, a.most)
	}
}
