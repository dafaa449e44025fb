// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"
	"errors"
	"fmt"
)

// Piece is guest data that a producer found. Exactly one of Zero, Data and Reuse
// says what it is, except that Reuse may come with Data: then the data is stored
// where the pack of Reuse is not there any more.
type Piece struct {
	Offset, Length int64 // guest bytes
	Zero           bool
	Data           []byte  // Length bytes (see Part), at most GridSize; not kept once the cell is done
	Digest         *Digest // of Data, if it is known
	Reuse          *Entry  // covers the piece, which refers to the same bytes of the same chunk
	// Part, if Data has the piece as a part of a whole chunk, says where it begins there: then
	// Data is that chunk, of at least Part+Length bytes.
	Part *int32
}

// Producer finds the content of a cell. It runs on a worker, at any time after
// Add; buf has GridSize bytes and is the producer's until it is called again. The
// pieces are sorted, do not overlap and lie in the cell; the slice is read before
// the worker runs another producer.
type Producer = func(ctx context.Context, buf []byte) ([]Piece, error)

// MapWriter takes the content of one disk, in ascending order of offsets, from one
// goroutine.
type MapWriter struct {
	w      *Writer
	bad    error // wrong arguments of NewMap
	size   int64
	full   bool
	next   int64
	sent   bool          // the end has been sent
	closed chan struct{} // the packer has seen the end

	// The rest is the packer's until closed is closed.
	build *mapBuilder
	packs []uint32 // session number by number in the map
	local []uint32 // number in the map plus 1, by session number
	stats DiskStats
}

var errEnded = errors.New("archive: the session has ended")

// take checks a range and waits for a free cell.
func (m *MapWriter) take(ctx context.Context, off, length int64) (*cell, error) {
	if m.bad != nil {
		return nil, m.bad
	}
	if m.sent {
		return nil, errors.New("archive: the map has been closed")
	}
	if off < m.next || length < 0 || length > m.size || off > m.size-length {
		return nil, fmt.Errorf("archive: %d bytes at %d are out of order or out of range of disk %s", length, off, m.build.head.disk)
	}
	if err := m.w.err(); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	select {
	case c := <-m.w.free:
		m.next = off + length
		*c = cell{m: m, off: off, length: length, done: c.done, results: c.results[:0], out: c.out[:0]}
		return c, nil
	case <-m.w.ctx.Done():
		return nil, m.w.err()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// send puts a cell into the pipeline. There is always room: the channels are as
// long as there are cells.
func (w *Writer) send(c *cell) error {
	w.adding.RLock()
	defer w.adding.RUnlock()
	if w.ended {
		w.free <- c
		if err := w.err(); err != nil {
			return err
		}
		return errEnded
	}
	w.order <- c
	if c.produce != nil {
		w.jobs <- c
	} else {
		c.done <- struct{}{}
	}
	return nil
}

// Add schedules the range [off, off+length), which lies in one grid cell. It
// blocks while too much is in flight. The producer's context ends with ctx and
// with the session. In a full map what the producer leaves out is zero, in a
// delta it is the parent's. An error of an earlier cell may come back here.
func (m *MapWriter) Add(ctx context.Context, off, length int64, produce Producer) error {
	if length > 0 && off/GridSize != (off+length-1)/GridSize {
		return fmt.Errorf("archive: %d bytes at %d are not in one grid cell", length, off)
	}
	c, err := m.take(ctx, off, length)
	if err != nil {
		return err
	}
	c.ctx, c.produce = ctx, produce
	return m.w.send(c)
}

// Zero records that a range of any length reads as zeros.
func (m *MapWriter) Zero(off, length int64) error {
	c, err := m.take(m.w.ctx, off, length)
	if err != nil {
		return err
	}
	if length > 0 {
		c.results = append(c.results, result{off: off, length: length, zero: true})
	}
	return m.w.send(c)
}

func (m *MapWriter) sendClose(ctx context.Context) error {
	if m.bad != nil || m.sent {
		return m.bad
	}
	c, err := m.take(ctx, m.size, 0)
	if err != nil {
		return err
	}
	m.sent = true
	c.last = true
	return m.w.send(c)
}

// Close waits until all that was added is in a pack, stored or about to be; the
// map itself is stored by Finish.
func (m *MapWriter) Close(ctx context.Context) (DiskStats, error) {
	if err := m.sendClose(ctx); err != nil {
		return DiskStats{}, err
	}
	select {
	case <-m.closed:
		return m.stats, nil
	case <-m.w.ctx.Done():
		return DiskStats{}, m.w.err()
	case <-ctx.Done():
		return DiskStats{}, context.Cause(ctx)
	}
}
