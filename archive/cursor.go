// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"
	"sort"
)

// cursor walks over the runs of a map. It is for one goroutine, and must be closed.
type cursor struct {
	m      *Map
	run    run // the current one, after next returned true
	text   []byte
	pos    int   // in text, of the next line
	frame  int   // number of the frame in text
	prev   int64 // end of the previous run in the frame
	loader loader
}

// newCursor begins before the first run. ahead: frames are fetched and decoded
// ahead of their use, with twice the memory.
func newCursor(ctx context.Context, m *Map, ahead bool) (*cursor, error) {
	dec, err := newDecoder()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	return &cursor{m: m, frame: -1, loader: loader{ctx: ctx, cancel: cancel, m: m, dec: dec, own: true, ahead: ahead}}, nil
}

// newSharedCursor shares a decoder and a buffer with other cursors of the same
// goroutine.
func newSharedCursor(ctx context.Context, m *Map, dec *decoder, stored *[]byte) *cursor {
	return &cursor{m: m, frame: -1, loader: loader{ctx: ctx, cancel: func() {}, m: m, dec: dec, shared: stored}}
}

func (c *cursor) close() { c.loader.close() }

// next goes to the first run after the current one that ends after pos; pos never
// falls. It reports false at the end of the map.
func (c *cursor) next(pos int64) (bool, error) {
	for {
		for c.pos < len(c.text) {
			line := c.text[c.pos : c.pos+runLineLen]
			c.pos += runLineLen
			if err := c.parse(line); err != nil {
				return false, err
			}
			if c.run.end() > pos {
				return true, nil
			}
		}
		if ok, err := c.load(pos); !ok || err != nil {
			return false, err
		}
	}
}

// load gets the next frame that may have runs which end after pos.
func (c *cursor) load(pos int64) (bool, error) {
	frames := c.m.frames
	if c.frame >= 0 && c.frame < len(frames) && c.prev != frames[c.frame].end {
		return false, c.damage()
	}
	i := c.frame + 1
	if i < len(frames) && frames[i].end <= pos {
		i += sort.Search(len(frames)-i, func(j int) bool { return frames[i+j].end > pos })
	}
	c.text, c.pos, c.frame = nil, 0, i
	if i >= len(frames) {
		return false, nil
	}
	var err error
	c.text, err = c.loader.load(i)
	c.prev = frames[i].first
	return err == nil, err
}

func (c *cursor) damage() error {
	f := &c.m.frames[c.frame]
	return &DamageError{Object: c.m.key, Offset: f.offset, Length: int64(f.length), Err: errOutOfOrder}
}

func (c *cursor) parse(line []byte) error {
	f := &c.m.frames[c.frame]
	r := &c.run
	if !r.parse(line) || !r.valid(f.end, len(c.m.packs)) || r.off < c.prev || c.pos == runLineLen && r.off != f.first {
		return c.damage()
	}
	c.prev = r.end()
	return nil
}

// loader fetches, proves and decodes frames; with ahead, the one after the last
// asked for too, in the background.
type loader struct {
	ctx    context.Context
	cancel context.CancelFunc
	m      *Map
	dec    *decoder
	own    bool // dec is ours to close
	ahead  bool
	stored []byte
	shared *[]byte // instead of stored
	text   [2][]byte
	turn   int
	coming chan loaded // nil: nothing is
}

type loaded struct {
	frame int
	text  []byte
	err   error
}

func (l *loader) load(i int) ([]byte, error) {
	got := loaded{frame: -1}
	if l.coming != nil {
		got = <-l.coming
		l.coming = nil
	}
	if got.frame != i {
		got = l.fetch(i, l.turn)
	}
	l.text[l.turn] = got.text
	if l.ahead {
		l.turn = 1 - l.turn
	}
	if got.err != nil {
		return nil, got.err
	}
	if l.ahead && i+1 < len(l.m.frames) {
		// The buffer of this turn held the frame before the one that is
		// returned now: the cursor is done with it.
		coming, turn := make(chan loaded, 1), l.turn
		l.coming = coming
		go func() { coming <- l.fetch(i+1, turn) }()
	}
	return got.text, nil
}

func (l *loader) fetch(i, turn int) loaded {
	f := &l.m.frames[i]
	buf := &l.stored
	if l.shared != nil {
		buf = l.shared
	}
	*buf = sized(*buf, int(f.length))
	if err := readRange(l.ctx, l.m.store, l.m.key, f.offset, *buf, l.m.ref.Length); err != nil {
		return loaded{frame: i, text: l.text[turn], err: err}
	}
	if cap(l.text[turn]) < int(f.raw)+bufSlack {
		l.text[turn] = make([]byte, 0, int(f.raw)+bufSlack)
	}
	text, err := l.m.proven(f, l.dec, *buf, l.text[turn])
	if err != nil {
		text = nil
	}
	return loaded{frame: i, text: text, err: err}
}

func (l *loader) close() {
	l.cancel()
	if l.coming != nil {
		<-l.coming
		l.coming = nil
	}
	if l.own {
		l.dec.close()
	}
}
