// SPDX-License-Identifier: Apache-2.0

package view

import (
	"slices"
	"sync"

	"github.com/imgbackup/imgbackup/archive"
)

const (
	// aheadUnit is the data that is fetched ahead with one request of each pack, bytes.
	aheadUnit = 4 << 20
	// aheadSlack is how much a read may miss the end of a stream by: clients have many
	// requests under way, which come in any order.
	aheadSlack = 8 << 20
	// aheadFrom is how much is read of a stream before anything is fetched for it, bytes.
	aheadFrom = 256 << 10
	// aheadReach is how far from a stream's end it is looked for data, bytes.
	aheadReach = 1 << 30
	maxStreams = 32
	// staleReads is after how many reads of others a stream may have ended.
	staleReads = 512
)

// ahead sees who reads on, and fetches what comes next, the more, the longer it was read
// on. Streams of reads are told apart by where they are, not by who reads: a client may
// have several connections, and read on in several places. One object serves all disks of
// a reader.
//
// What was fetched ahead and is not read yet takes at most its part of the memory for
// chunks, so that it is still there when it is read.
type ahead struct {
	chunks *chunks
	most   int64 // bytes of memory for what was fetched and not read yet
	atOnce int   // fetches

	mu      sync.Mutex
	streams []*stream // the one last read comes last
	held    int64     // of most
	now     int       // fetches at work
	reads   int64     // so far
}

// stream is a part of a disk that is read from its beginning on.
type stream struct {
	disk    *Disk
	end     int64  // up to where it was read
	next    int64  // from where on nothing was fetched
	read    int64  // bytes, each once
	units   []unit // fetched and not read yet
	held    int64  // bytes that they take
	last    int64  // the number of the read
	filling bool
	dropped bool
}

// unit is some data that was fetched ahead with the disk up to end.
type unit struct {
	end, cost int64
}

func newAhead(c *chunks, parallel int) *ahead {
	// Some requests and memory are for what nobody could foresee.
	return &ahead{chunks: c, most: c.limit / 8 * 5, atOnce: max(parallel-2, 1)}
}

// read is told of a read of [off, end) that is about to begin. Where that has caught up
// with what was fetched, what it wants is fetched together with what comes next.
func (a *ahead) read(d *Disk, off, end int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reads++
	s := a.find(d, off)
	if s != nil {
		s.last = a.reads
		caughtUp := s.next < end
		a.advance(s, off, end)
		if caughtUp && a.wants(s) {
			a.unit(s, off)
		}
		a.fill(s)
		return
	}
	s = &stream{disk: d, last: a.reads}
	a.advance(s, off, end)
	a.streams = append(a.streams, s)
	if len(a.streams) > maxStreams {
		a.drop(0)
	}
}

// find returns the stream that a read belongs to, as the last of all.
func (a *ahead) find(d *Disk, off int64) *stream {
	for i := len(a.streams) - 1; i >= 0; i-- {
		s := a.streams[i]
		if s.disk == d && s.end-aheadSlack <= off && off <= s.next+aheadUnit/4 {
			a.streams = append(slices.Delete(a.streams, i, i+1), s)
			return s
		}
	}
	return nil
}

// advance notes that [off, end) was read of a stream.
func (a *ahead) advance(s *stream, off, end int64) {
	if end <= s.end {
		return
	}
	s.read += end - max(off, s.end)
	s.end = end
	s.next = max(s.next, s.end)
	for len(s.units) > 0 && s.units[0].end <= s.end { // of a stream that is not dropped
		s.held -= s.units[0].cost
		a.held -= s.units[0].cost
		s.units = s.units[1:]
	}
}

func (a *ahead) drop(i int) {
	s := a.streams[i]
	s.dropped = true
	a.held -= s.held
	a.streams = slices.Delete(a.streams, i, i+1)
}

// fill has what a stream wants fetched.
func (a *ahead) fill(s *stream) {
	if !s.filling && a.wants(s) {
		s.filling = true
		a.chunks.work.Go(func() { a.run(s) })
	}
}

// fillAll has fetched what any stream wants.
func (a *ahead) fillAll() {
	for _, s := range slices.Clone(a.streams) { // some may be dropped
		a.fill(s)
	}
}

// wants reports whether more should be fetched for a stream now.
func (a *ahead) wants(s *stream) bool {
	if s.dropped || s.read < aheadFrom || s.next >= s.disk.size || s.next-s.end >= aheadReach || a.now >= a.atOnce {
		return false
	}
	live := int64(0)
	for i := len(a.streams) - 1; i >= 0; i-- {
		if a.reads-a.streams[i].last < staleReads {
			live++
		} else if a.held >= a.most {
			a.drop(i)
		}
	}
	return s.held < min(4*s.read, a.most/max(live, 1)) && a.held < a.most
}

// run begins fetches as long as a stream wants more.
func (a *ahead) run(s *stream) {
	a.mu.Lock()
	defer a.mu.Unlock()
	defer func() { s.filling = false }()
	for a.wants(s) && a.unit(s, s.next) {
	}
}

// unit fetches what a stream's disk is made of after from: as much as is asked for at once.
// It reports whether that has begun. What fails is met again, and told, by the read that
// wants it.
func (a *ahead) unit(s *stream, from int64) bool {
	size := min(aheadUnit, 4*s.read)
	a.mu.Unlock()
	var b *batch
	for parts := a.parts(s.disk, from, size); len(parts) > 0 && b == nil; {
		b = a.chunks.tryAcquire(parts)
		parts = parts[:len(parts)/2]
	}
	a.mu.Lock()
	if b != nil {
		a.begin(s, b)
	}
	return b != nil // if not, the next read tries again
}

// parts are what the disk is made of after from, up to size bytes of data and no further
// than one look into the maps reaches.
func (a *ahead) parts(d *Disk, from, size int64) []part {
	w, err := d.windows.at(a.chunks.ctx, from)
	if err != nil {
		return nil
	}
	parts, err := d.windows.next(a.chunks.ctx, from, w.end, maxBatch)
	if err != nil {
		return nil
	}
	data := int64(0)
	for i := range parts {
		if !parts[i].Zero {
			data += parts[i].Length
		}
		if data >= size {
			return parts[:i+1]
		}
	}
	return parts
}

// begin waits for a batch in the background.
func (a *ahead) begin(s *stream, b *batch) {
	end := b.parts[len(b.parts)-1].End()
	if s.next = max(s.next, end); end > s.end {
		s.units = append(s.units, unit{end: end, cost: b.cost})
		if s.held += b.cost; !s.dropped {
			a.held += b.cost
		}
	}
	if b.cost == 0 { // all is there, or on its way
		a.chunks.release(b)
		return
	}
	a.now++
	a.chunks.work.Go(func() {
		_ = b.each(a.chunks.ctx, func(*archive.Entry, []byte) {}, func(*archive.Entry, error) bool { return a.chunks.ctx.Err() == nil })
		a.chunks.release(b)
		a.mu.Lock()
		defer a.mu.Unlock()
		a.now--
		a.fillAll()
	})
}
