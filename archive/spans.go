// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"
	"sort"
)

// spanBytes bounds the stored frames that all cursors of one merge hold, bytes;
// one frame of each map is held in any case, and one is fetched.
const spanBytes = 16 << 20

// spanReader fetches the frames of a map's runs, many with one request and the
// next ones before they are asked for: a merge waits for a store that is far
// away once, and not once for each frame. It is for one goroutine at a time.
type spanReader struct {
	ctx    context.Context
	cancel context.CancelFunc
	m      *Map
	until  int   // the first frame that is of no use
	limit  int64 // of a span, stored bytes; a span has at least one frame
	now    frameSpan
	coming chan frameSpan // nil: nothing is
}

// frameSpan is some frames that lie together in the map.
type frameSpan struct {
	first, end int
	data       []byte
	err        error
}

// newSpanReader is for the frames that may have runs in [start, end). share is
// among how many readers spanBytes is divided.
func newSpanReader(ctx context.Context, m *Map, end int64, share int) *spanReader {
	ctx, cancel := context.WithCancel(ctx)
	until := sort.Search(len(m.frames), func(i int) bool { return m.frames[i].first >= end })
	s := &spanReader{ctx: ctx, cancel: cancel, m: m, until: until, limit: spanBytes / int64(2*max(share, 1))}
	return s
}

// begin fetches the first span, whose first run ends after pos, in the
// background.
func (s *spanReader) begin(pos int64) {
	if _, kept := s.m.store.(keptObject); kept {
		return
	}
	s.ahead(s.m.frameAfter(0, pos))
}

// frameAfter is the first frame from i on that has a run which ends after pos.
func (m *Map) frameAfter(i int, pos int64) int {
	return i + sort.Search(len(m.frames)-i, func(j int) bool { return m.frames[i+j].end > pos })
}

// frame returns the stored bytes of frame i, until it is called again.
func (s *spanReader) frame(i int) ([]byte, error) {
	if k, kept := s.m.store.(keptObject); kept {
		f := &s.m.frames[i]
		if end := f.offset + int64(f.length); end <= int64(len(k.data)) && s.ctx.Err() == nil {
			return k.data[f.offset:end], nil
		}
	}
	if i < s.now.first || i >= s.now.end {
		if err := s.turn(i); err != nil {
			return nil, err
		}
	}
	f := &s.m.frames[i]
	at := f.offset - s.m.frames[s.now.first].offset
	return s.now.data[at : at+int64(f.length)], nil
}

// turn makes the span with frame i the one at hand.
func (s *spanReader) turn(i int) error {
	old := s.now.data
	s.now = frameSpan{}
	if s.coming != nil {
		got := <-s.coming
		s.coming = nil
		if got.err == nil && got.first <= i && i < got.end {
			s.now = got
		}
	}
	if s.now.end == 0 {
		s.now = s.fetch(i, s.endOf(i), old)
		old = nil
	}
	if s.now.err != nil && s.now.end > i+1 {
		// What is wrong with one frame is not the others' fault.
		s.now = s.fetch(i, i+1, nil)
	}
	if err := s.now.err; err != nil {
		s.now = frameSpan{}
		return err
	}
	s.aheadInto(s.now.end, old)
	return nil
}

// endOf is where a span from frame i on ends.
func (s *spanReader) endOf(i int) int {
	frames := s.m.frames
	end := i + 1
	for end < s.until && frames[end].offset+int64(frames[end].length)-frames[i].offset <= s.limit {
		end++
	}
	return end
}

func (s *spanReader) ahead(i int) { s.aheadInto(i, nil) }

func (s *spanReader) aheadInto(i int, buf []byte) {
	if i >= s.until {
		return
	}
	coming := make(chan frameSpan, 1)
	s.coming = coming
	go func() { coming <- s.fetch(i, s.endOf(i), buf) }()
}

// fetch reads the frames from first up to end, into buf if it is large enough.
func (s *spanReader) fetch(first, end int, buf []byte) frameSpan {
	frames := s.m.frames
	from, last := frames[first].offset, &frames[end-1]
	buf = sized(buf, int(last.offset+int64(last.length)-from))
	err := readRange(s.ctx, s.m.store, s.m.key, from, buf, s.m.ref.Length)
	return frameSpan{first: first, end: end, data: buf, err: err}
}

func (s *spanReader) close() {
	s.cancel()
	if s.coming != nil {
		<-s.coming
		s.coming = nil
	}
}
