// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"

	"github.com/imgbackup/imgbackup/objstore"
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

// newCursor begins before the first run, of those before end. Frames are decoded
// ahead of their use, with twice the memory. share is among how many cursors
// spanBytes is divided.
func newCursor(ctx context.Context, m *Map, end int64, share int) (*cursor, error) {
	dec, err := newDecoder()
	if err != nil {
		return nil, err
	}
	return &cursor{m: m, frame: -1, loader: loader{spans: newSpanReader(ctx, m, end, share), m: m, dec: dec, ahead: true}}, nil
}

// newSharedCursor shares a decoder with other cursors of the same goroutine, and
// decodes nothing ahead.
func newSharedCursor(ctx context.Context, m *Map, end int64, share int, dec *decoder) *cursor {
	return &cursor{m: m, frame: -1, loader: loader{spans: newSpanReader(ctx, m, end, share), m: m, dec: dec}}
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
		i = c.m.frameAfter(i, pos)
	}
	c.text, c.pos, c.frame = nil, 0, i
	if i >= c.loader.spans.until {
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
	if !r.parse(line) || !r.valid(f.end, len(c.m.packs), c.m.frameLimit) || r.off < c.prev || c.pos == runLineLen && r.off != f.first {
		return c.damage()
	}
	c.prev = r.end()
	return nil
}

// loader proves and decodes frames; with ahead, the one after the last asked for
// too, in the background.
type loader struct {
	spans  *spanReader
	m      *Map
	dec    *decoder
	ahead  bool // and dec is ours to close
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
	if l.ahead && i+1 < l.spans.until {
		// The buffer of this turn held the frame before the one that is
		// returned now: the cursor is done with it.
		coming, turn := make(chan loaded, 1), l.turn
		l.coming = coming
		go func() { coming <- l.fetch(i+1, turn) }()
	}
	return got.text, nil
}

func (l *loader) fetch(i, turn int) loaded {
	stored, err := l.spans.frame(i)
	got := l.decode(i, turn, stored, err)
	if IsDamage(got.err) && objstore.Doubted(l.spans.ctx, l.m.store, l.m.key) {
		again := l.spans.fetch(i, i+1, nil)
		return l.decode(i, turn, again.data, again.err)
	}
	return got
}

// decode proves a frame that was read, unless that failed.
func (l *loader) decode(i, turn int, stored []byte, err error) loaded {
	if err != nil {
		return loaded{frame: i, text: l.text[turn], err: err}
	}
	f := &l.m.frames[i]
	if cap(l.text[turn]) < int(f.raw)+bufSlack {
		l.text[turn] = make([]byte, 0, int(f.raw)+bufSlack)
	}
	text, err := l.m.proven(f, l.dec, stored, l.text[turn])
	if err != nil {
		text = nil
	}
	return loaded{frame: i, text: text, err: err}
}

func (l *loader) close() {
	l.spans.cancel()
	if l.coming != nil {
		<-l.coming
		l.coming = nil
	}
	l.spans.close()
	if l.ahead {
		l.dec.close()
	}
}
