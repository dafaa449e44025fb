// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"fmt"
	"iter"

	"github.com/imgbackup/imgbackup/bitmapstore"
)

// Kind says what a range of a disk is made of.
type Kind uint8

// The kinds.
const (
	Hole       Kind = iota // allocated nowhere: reads as zeros
	Zero                   // allocated, and known to read as zeros
	Data                   // guest data
	Compressed             // guest data in compressed clusters
)

func (k Kind) String() string {
	switch k {
	case Hole:
		return "hole"
	case Zero:
		return "zero"
	case Data:
		return "data"
	case Compressed:
		return "compressed"
	}
	return fmt.Sprintf("unknown-%d", uint8(k))
}

// Extent is a range of a disk that is of one kind and from one layer.
type Extent struct {
	Offset, Length int64 // guest bytes
	Kind           Kind
	Layer          int // index in Chain.Layers; -1 for a hole
}

// minFileHole is the least hole in a file, in bytes, that is told apart from
// the data around it: smaller ones cost more reads than they save bytes.
const minFileHole = 64 << 10

// Extents yields what the guest range [start, end) is made of, over the whole
// chain: in ascending order, without gaps, neighbours always different. A range
// of a file that the file system knows to be a hole is yielded as Zero where it
// is long enough to matter. An error comes last: a [*DamageError], or one of
// the operating system's.
func (c *Image) Extents(start, end int64) iter.Seq2[Extent, error] {
	return c.extents(0, start, end, whole{below: true, holes: true})
}

// LayerExtents yields what the range [start, end) of one layer's own disk is
// made of, without regard to other layers: what is not allocated in it is a
// Hole. All of a raw layer is allocated. Otherwise it is like [Image.Extents].
func (c *Image) LayerExtents(layer int, start, end int64) iter.Seq2[Extent, error] {
	return c.extents(layer, start, end, whole{holes: true})
}

// whole says what a walk over a disk takes into account beside a layer's tables.
type whole struct {
	below bool // the layers below
	holes bool // holes of files
}

func (c *Image) extents(layer int, start, end int64, of whole) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		if layer < 0 || layer >= len(c.Layers) {
			yield(Extent{}, fmt.Errorf("the backing chain of %s has no layer %d", c.Layers[0].Path, layer))
			return
		}
		if size := c.Layers[layer].Size; start < 0 || end < start || end > size {
			yield(Extent{}, fmt.Errorf("%s: the range %d to %d does not lie in the disk of %d bytes", c.Layers[layer].Path, start, end, size))
			return
		}
		c.surveyFor(layer, end-start, of.below)
		w := newWalker(c, of, yield)
		err := w.walk(layer, start, end)
		if w.stopped || !w.flush() {
			return
		}
		if err != nil {
			yield(Extent{}, err)
		}
	}
}

// Allocated is the set of bytes that are allocated in a layer itself, as data
// or as zeros; of a raw layer all of it.
func (c *Image) Allocated(ctx context.Context, layer int) bitmapstore.Runs {
	if layer < 0 || layer >= len(c.Layers) {
		return bitmapstore.Fail(fmt.Errorf("the backing chain of %s has no layer %d", c.Layers[0].Path, layer))
	}
	l := c.Layers[layer]
	if l.Header == nil {
		return bitmapstore.Of(bitmapstore.Run{Start: 0, End: l.Size})
	}
	return runsOf(ctx, c.LayerExtents(layer, 0, l.Size), func(k Kind) bool { return k != Hole })
}

// Data is where the disk's extents hold data, in whichever layer. The images' own tables are read
// anew each time.
func (c *Image) Data(ctx context.Context) bitmapstore.Runs {
	return runsOf(ctx, c.Extents(0, c.Size()), func(k Kind) bool { return k == Data || k == Compressed })
}

// DataIn is where a set has data, as the extents of its runs tell. Of the images' tables only what
// maps them is read.
func (c *Image) DataIn(ctx context.Context, set bitmapstore.Runs) bitmapstore.Runs {
	return bitmapstore.Join(func(yield func(bitmapstore.Run, error) bool) {
		w := newWalker(c, whole{below: true, holes: true}, func(e Extent, err error) bool {
			if err == nil && e.Kind != Data && e.Kind != Compressed {
				return true
			}
			return yield(bitmapstore.Run{Start: e.Offset, End: e.Offset + e.Length}, err)
		})
		for run, err := range set.Clip(c.Size()) {
			if err == nil {
				err = ctx.Err()
			}
			if err == nil {
				err = w.walk(0, run.Start, run.End)
			}
			if w.stopped || !w.flush() {
				return
			}
			if err != nil {
				yield(bitmapstore.Run{}, err)
				return
			}
		}
	})
}

// Empty is where the disk reads as zeros without holding any data: what Data leaves out.
func (c *Image) Empty(ctx context.Context) bitmapstore.Runs {
	return runsOf(ctx, c.Extents(0, c.Size()), func(k Kind) bool { return k == Hole || k == Zero })
}

// Mapped is where the disk has data by its images' formats alone: in clusters that a table names,
// whatever their bytes, and in all of a raw image. Unlike those of Data, its answers stay the same
// until somebody writes to the disk: whether a range of a file is a hole is up to its file system,
// to which zeros that are only allocated are data as long as they happen to be in the page cache.
func (c *Image) Mapped(ctx context.Context) bitmapstore.Runs {
	return runsOf(ctx, c.extents(0, 0, c.Size(), whole{below: true}), func(k Kind) bool { return k == Data || k == Compressed })
}

// Unmapped is what Mapped leaves out: it is allocated nowhere, or a table says that it is zeros.
func (c *Image) Unmapped(ctx context.Context) bitmapstore.Runs {
	return runsOf(ctx, c.extents(0, 0, c.Size(), whole{below: true}), func(k Kind) bool { return k == Hole || k == Zero })
}

func runsOf(ctx context.Context, extents iter.Seq2[Extent, error], keep func(Kind) bool) bitmapstore.Runs {
	return bitmapstore.Join(func(yield func(bitmapstore.Run, error) bool) {
		for e, err := range extents {
			if err == nil {
				err = ctx.Err()
			}
			if (err != nil || keep(e.Kind)) && !yield(bitmapstore.Run{Start: e.Offset, End: e.Offset + e.Length}, err) {
				return
			}
		}
	})
}

// walker turns the mappings of layers into extents.
type walker struct {
	c       *Image
	of      whole
	yield   func(Extent, error) bool
	stopped bool // the consumer has enough
	pending Extent
	cursors []cursor     // by layer
	regions []dataRegion // by layer
}

// dataRegion is a range of a file that the file system says holds data. What
// lies between from and start is a hole.
type dataRegion struct{ from, start, end int64 }

func newWalker(c *Image, of whole, yield func(Extent, error) bool) *walker {
	w := &walker{c: c, of: of, yield: yield}
	w.cursors = make([]cursor, len(c.Layers))
	w.regions = make([]dataRegion, len(c.Layers))
	for i, l := range c.Layers {
		w.cursors[i].l = l
	}
	return w
}

// walk emits [start, end) as layer and those below it make it up.
func (w *walker) walk(layer int, start, end int64) error {
	l := w.c.Layers[layer]
	if l.foreign != nil {
		return w.foreign(layer, start, end)
	}
	if l.Header == nil {
		w.file(layer, start, start, end)
		return nil
	}
	for start < end && !w.stopped {
		s, err := w.cursors[layer].at(start, end)
		if err != nil && w.c.opts.Salvage {
			next := min(end, w.cursors[layer].unmapped(start))
			w.emit(Extent{Offset: start, Length: next - start, Kind: Data, Layer: layer})
			start = next
			continue
		}
		if err != nil {
			return err
		}
		next := start + s.length
		switch {
		case s.kind == Data:
			w.file(layer, start, s.host, next)
		case s.kind != Hole:
			w.emit(Extent{Offset: start, Length: s.length, Kind: s.kind, Layer: layer})
		default:
			if err := w.below(layer+1, start, next); err != nil {
				return err
			}
		}
		start = next
	}
	return nil
}

// foreign emits what another program says of a layer. All of it has to be told.
func (w *walker) foreign(layer int, start, end int64) error {
	l := w.c.Layers[layer]
	for e, err := range l.foreign.Extents(start, end) {
		if err != nil {
			return fmt.Errorf("%s: %w", l.Path, err)
		}
		if e.Offset != start || e.Length <= 0 || e.Length > end-start {
			return fmt.Errorf("%s: its extents have a gap at %d", l.Path, start)
		}
		if e.Layer = layer; e.Kind == Hole {
			e.Layer = -1
		}
		start += e.Length
		if w.emit(e); w.stopped {
			return nil
		}
	}
	if start != end {
		return fmt.Errorf("%s: its extents end at %d, and not at %d", l.Path, start, end)
	}
	return nil
}

// below emits a range that the layers above do not map.
func (w *walker) below(layer int, start, end int64) error {
	if w.of.below && layer < len(w.c.Layers) {
		if covered := min(end, w.c.Layers[layer].Size); start < covered {
			if err := w.walk(layer, start, covered); err != nil {
				return err
			}
			start = covered
		}
	}
	w.emit(Extent{Offset: start, Length: end - start, Kind: Hole, Layer: -1})
	return nil
}

// file emits guest data that lies at offset host of the layer's data file,
// with the holes that are in the file.
func (w *walker) file(layer int, start, host, end int64) {
	if !w.of.holes {
		w.emit(Extent{Offset: start, Length: end - start, Kind: Data, Layer: layer})
		return
	}
	f := w.c.Layers[layer].data
	region := &w.regions[layer]
	toGuest := start - host
	for start < end && !w.stopped {
		if host < region.from || host >= region.end {
			*region = dataRegion{from: host}
			region.start, region.end = f.nextData(host)
			if region.start >= f.size { // only a hole is left, and what lies beyond the end
				region.start, region.end = end-toGuest, end-toGuest
			}
		}
		kind, next := Data, min(end, region.end+toGuest)
		if host < region.start {
			kind, next = Zero, min(end, region.start+toGuest)
			if next-start < minFileHole {
				kind = Data
			}
		}
		w.emit(Extent{Offset: start, Length: next - start, Kind: kind, Layer: layer})
		start, host = next, next-toGuest
	}
}

// emit takes the next extent, which may join the pending one.
func (w *walker) emit(e Extent) {
	if w.stopped || e.Length == 0 {
		return
	}
	p := &w.pending
	if p.Length > 0 && p.Kind == e.Kind && p.Layer == e.Layer {
		p.Length += e.Length
		return
	}
	if w.flush() {
		w.pending = e
	}
}

// flush yields the pending extent; false: the consumer has enough.
func (w *walker) flush() bool {
	if w.pending.Length == 0 {
		return true
	}
	e := w.pending
	w.pending = Extent{}
	if !w.yield(e, nil) {
		w.stopped = true
	}
	return !w.stopped
}
