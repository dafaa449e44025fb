// SPDX-License-Identifier: Apache-2.0

package view

import (
	"cmp"
	"slices"
	"sync"

	"github.com/imgbackup/imgbackup/archive"
)

const (
	// aheadUnit is the data that is fetched ahead with one request of each pack, bytes; and
	// aheadParts are what it may be made of, in number.
	aheadUnit  = 6 << 20
	aheadParts = 512
	// aheadSlack is how far reads of one stream may overtake each other, bytes: clients have
	// many requests under way, which come in any order.
	aheadSlack = 8 << 20
	// aheadFrom is how much is read of a stream before anything is fetched for it, bytes.
	aheadFrom = 256 << 10
	// aheadReach is how far from a stream's end it is looked for data, bytes.
	aheadReach = 1 << 30
	maxStreams = 32
	// overtaken is by how many others of its stream a read may be overtaken, however far
	// that is: where there is nothing to be read between them it may be far.
	overtaken = 32
	// aheadTrust is how much was read of a stream that is likely to go on elsewhere, too, where
	// it ends; and of it trusted reads in a row: of those who copy a disk in ranges. A new stream
	// takes away newStream of them.
	aheadTrust              = 32 << 20
	trustedReads, newStream = 128, 16
	// staleReads is after how many reads of others a stream may have ended.
	staleReads = 512
	// pastReads is after how many reads of others nobody minds any more that a stream was read.
	pastReads = 4096
	// freshReads is for how many reads of others a stream of which little was read is believed
	// to go on.
	freshReads = 64
)

// ahead sees who reads on, and fetches what comes next, the more, the longer it was read
// on. Streams of reads are told apart by where they are, not by who reads: a client may
// have several connections, and read on in several places. One object serves all disks of
// a reader.
//
// Nothing is fetched for a stream from where on another one has begun: a client that reads
// on in several places stops where it has read already, and reads that overtook others look
// like a stream of their own until the others have come so far.
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
	onward  int       // reads that went on in long streams, less what speaks against such a client
}

// stream is a part of a disk that is read from its beginning on.
type stream struct {
	disk    *Disk
	start   int64            // where it was first read
	end     int64            // up to where it was read
	ends    [overtaken]int64 // and after each of the last reads that went on, in a ring
	turn    int              // where the oldest of those is
	next    int64            // from where on nothing was fetched
	read    int64            // bytes, each once
	units   []unit           // fetched and not read yet
	passed  []unit           // up to their end it was read; reads that were overtaken may still come
	held    int64            // bytes that units take
	last    int64            // the number of the read
	filling bool
	dropped bool
}

// unit is some data that was fetched ahead with the disk up to end.
type unit struct {
	end, cost int64
	chunks    []*chunk
}

func newAhead(c *chunks, parallel int) *ahead {
	// Some requests and memory are for what nobody could foresee.
	return &ahead{chunks: c, most: c.limit / 4 * 3, atOnce: max(parallel-2, 1)}
}

// read is told of a read of [off, end) that is about to begin. Where that has caught up
// with what was fetched, what it wants is fetched together with what comes next, and with
// what it has overtaken.
func (a *ahead) read(d *Disk, off, end int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reads++
	s := a.find(d, off)
	switch {
	case s == nil:
		s = a.add(&stream{disk: d, next: off}, off)
	case s.skips(off):
		s = a.split(s, off)
	case s.read >= aheadTrust/4:
		a.onward = min(a.onward+1, 2*trustedReads)
	}
	s.last = a.reads
	from := s.next
	a.advance(s, off, end)
	a.join(s)
	if from < end && from < s.next && a.wants(s) {
		a.unit(s, from)
	}
	a.fill(s)
}

// add begins a stream.
func (a *ahead) add(s *stream, off int64) *stream {
	s.start, s.end = off, off
	for i := range s.ends {
		s.ends[i] = off
	}
	if a.onward >= trustedReads {
		s.read = max(s.read, aheadTrust/8)
	}
	a.onward = max(a.onward-newStream, 0)
	a.streams = append(a.streams, s)
	if len(a.streams) > maxStreams {
		a.drop(0)
	}
	return s
}

// skips reports whether a read leaves out more of what was fetched for a stream than its reads
// may overtake each other: then it is somebody else's.
func (s *stream) skips(off int64) bool {
	left := int64(0)
	for _, u := range s.units {
		if u.end <= off {
			left += u.cost
		}
	}
	return left > aheadSlack
}

// split begins a stream with what was fetched for another from off on.
func (a *ahead) split(s *stream, off int64) *stream {
	o := &stream{disk: s.disk, next: max(s.next, off)}
	if s.read >= aheadTrust {
		o.read = s.read
	}
	n := 0
	for ; n < len(s.units) && s.units[n].end <= off; n++ { // what is read first
	}
	for _, u := range s.units[n:] {
		o.held += u.cost
	}
	o.units, s.units = slices.Clone(s.units[n:]), s.units[:n:n]
	s.held -= o.held
	s.next = min(s.next, off)
	return a.add(o, off)
}

// find returns the stream that a read belongs to, as the last of all: of those that it may
// go on the one that began last before it.
func (a *ahead) find(d *Disk, off int64) *stream {
	at := -1
	for i, s := range a.streams {
		if s.disk == d && s.takes(off) && (at < 0 || a.streams[at].start < s.start) {
			at = i
		}
	}
	if at < 0 {
		return nil
	}
	s := a.streams[at]
	a.streams = append(slices.Delete(a.streams, at, at+1), s)
	return s
}

// takes reports whether a read may belong to a stream: whether it is not too far behind its
// end, nor before it. The longer it was read on, the more likely it goes on.
func (s *stream) takes(off int64) bool {
	behind := min(s.end-aheadSlack, s.ends[s.turn])
	return s.start <= off && behind <= off && off <= s.next+min(max(s.read/2, aheadSlack/8), aheadSlack)
}

// advance notes that [off, end) was read of a stream.
func (a *ahead) advance(s *stream, off, end int64) {
	if end <= s.end {
		return
	}
	s.read += end - max(off, s.end)
	s.ends[s.turn], s.turn = s.end, (s.turn+1)%overtaken
	s.end = end
	s.next = max(s.next, s.end)
	a.pass(s)
}

// pass takes note of what lies before a stream's end.
func (a *ahead) pass(s *stream) {
	n := 0
	for ; n < len(s.units) && s.units[n].end <= s.end; n++ { // of a stream that is not dropped
		s.held -= s.units[n].cost
		a.held -= s.units[n].cost
	}
	s.passed = append(s.passed, s.units[:n]...)
	s.units = s.units[n:]
	for n = 0; n < len(s.passed) && s.passed[n].end <= s.end-aheadSlack; n++ {
		a.chunks.abandon(s.passed[n].chunks)
	}
	s.passed = slices.Delete(s.passed, 0, n)
}

// join makes streams that a stream has caught up with a part of it.
func (a *ahead) join(s *stream) {
	for i := len(a.streams) - 1; i >= 0; i-- {
		o := a.streams[i]
		if o == s || o.disk != s.disk || o.start < s.start || s.end < o.start || s.end+aheadSlack < o.end {
			continue
		}
		s.end, s.next = max(s.end, o.end), max(s.next, o.next)
		s.read += o.read
		s.units = append(s.units, o.units...)
		slices.SortStableFunc(s.units, func(x, y unit) int { return cmp.Compare(x.end, y.end) })
		s.passed = append(s.passed, o.passed...)
		s.held += o.held
		o.dropped = true
		a.streams = slices.Delete(a.streams, i, i+1)
		a.pass(s)
	}
}

func (a *ahead) drop(i int) {
	s := a.streams[i]
	s.dropped = true
	a.held -= s.held
	for _, u := range slices.Concat(s.passed, s.units) {
		a.chunks.abandon(u.chunks)
	}
	s.passed, s.units = nil, nil
	a.streams = slices.Delete(a.streams, i, i+1)
}

// limit is up to where may be fetched for a stream: to where another begins.
func (a *ahead) limit(s *stream) int64 {
	limit := s.disk.size
	for _, o := range a.streams {
		age := a.reads - o.last
		if o != s && o.disk == s.disk && o.start >= s.end && o.start > s.start && (age < freshReads || age < pastReads && o.read >= aheadFrom) {
			limit = min(limit, o.start)
		}
	}
	return limit
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
	if s.dropped || s.read < aheadFrom || s.next-s.end >= aheadReach || a.now >= a.atOnce || s.next >= a.limit(s) {
		return false
	}
	share := a.share(s)
	return s.held <= share-unitOf(share) && a.held < a.most
}

// share is what may be held for a stream, bytes: a part of the memory for each that wants more,
// but for what is held for those that don't.
func (a *ahead) share(s *stream) int64 {
	most, live := a.most, int64(0)
	for i := len(a.streams) - 1; i >= 0; i-- {
		switch o := a.streams[i]; {
		case o == s || a.reads-o.last < staleReads && o.next < a.limit(o):
			live++
		case a.reads-o.last < staleReads || a.held < a.most:
			most -= o.held
		default:
			a.drop(i)
		}
	}
	return min(4*s.read, most/live)
}

// unitOf is how much is fetched at once of what may be held: one unit comes while another
// is read.
func unitOf(share int64) int64 { return min(aheadUnit, share/2) }

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
	size, limit, none := unitOf(a.share(s)), a.limit(s), s.held == 0
	a.mu.Unlock()
	var b *batch
	for parts := a.parts(s.disk, from, limit, size); len(parts) > 0 && b == nil; parts = parts[:len(parts)/2] {
		b = a.chunks.tryAcquire(parts)
		if !none { // what is there is read first, until there is room for all of it
			break
		}
	}
	a.mu.Lock()
	if b != nil {
		if s.dropped || s.next < from {
			s = a.of(s.disk, from)
		}
		a.begin(s, b)
	}
	return b != nil // if not, the next read tries again
}

// of is the stream to which belongs what follows from; nil: none.
func (a *ahead) of(d *Disk, from int64) (s *stream) {
	for _, o := range a.streams {
		if o.disk == d && o.start <= from && from <= o.next && (s == nil || s.start < o.start) {
			s = o
		}
	}
	return s
}

// parts are what the disk is made of in [from, limit): up to size bytes of data and of room for
// it, and no further than one look into the maps reaches.
func (a *ahead) parts(d *Disk, from, limit, size int64) []part {
	if from >= limit {
		return nil
	}
	w, err := d.windows.at(a.chunks.ctx, from)
	if err != nil {
		return nil
	}
	parts, err := d.windows.next(a.chunks.ctx, from, min(w.end, limit), aheadParts)
	if err != nil {
		return nil
	}
	room := int64(0)
	for i := range parts {
		if !parts[i].Zero {
			if room >= size { // zeros that follow cost nothing
				return parts[:i]
			}
			room += max(parts[i].Length, roomFor(&parts[i]))
		}
	}
	return parts
}

// begin waits for a batch in the background.
func (a *ahead) begin(s *stream, b *batch) {
	u := unit{end: b.parts[len(b.parts)-1].End(), cost: b.cost, chunks: slices.DeleteFunc(slices.Clone(b.chunks), func(k *chunk) bool { return k == nil })}
	switch {
	case s == nil:
		a.chunks.abandon(u.chunks)
	case u.end > s.end:
		s.units = append(s.units, u)
		s.held += b.cost
		a.held += b.cost
	default:
		s.passed = append(s.passed, u)
	}
	if s != nil {
		s.next = max(s.next, u.end)
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
