// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"sync/atomic"
)

// A survey is one pass over the mapping tables of a layer, in large reads and on all cores, for
// whoever needs them whole: it makes the layer's [layout], which all extents and places come from
// afterwards, and counts references where the refcounts are asked for.
type survey struct {
	l      *Layer
	counts *counter // nil: not asked for
	tables atomic.Int64
}

// surveyPart is how many bytes of L2 tables are one worker's at once.
const surveyPart = 4 << 20

// maxSurvey bounds the bytes of L2 tables that are read, of all snapshots.
const maxSurvey = 256 << 30

var errTooManyTables = errors.New("it names more L2 tables than an image of its size can have")

// count notes that tables are about to be read. An image in which more are mapped than can be
// is not walked: so the time is bounded by the size of its file.
func (s *survey) count(n int) error {
	h := s.l.Header
	most := min(16*(s.l.file.size>>h.ClusterBits)+4096, maxSurvey>>h.ClusterBits)
	if s.tables.Add(int64(n)) > most {
		return errTooManyTables
	}
	return nil
}

// active walks the tables of the disk, and makes its layout.
func (s *survey) active(ctx context.Context) (*layout, error) {
	h := s.l.Header
	per := h.tablesPerPart()
	y := &layout{span: per * h.l2Span()}
	y.chunks = make([][]layoutRun, ceilDiv(h.neededL1(), per))
	entries := h.neededL1()
	if s.counts != nil {
		entries = h.L1Entries
	}
	return y, s.walk(ctx, h.L1Offset, entries, true, y)
}

func (h *Header) tablesPerPart() int64 { return max(1, int64(surveyPart)>>h.ClusterBits) }

// walk walks the L2 tables that an L1 table names: the active one's, or a snapshot's. y may be nil.
func (s *survey) walk(ctx context.Context, l1, entries int64, active bool, y *layout) error {
	per := s.l.Header.tablesPerPart()
	return shared(ctx, ceilDiv(entries, per), func() func(int64) error {
		w := &surveyWorker{survey: s, active: active, layout: y, reader: clusterReader{file: s.l.file, size: s.l.Header.ClusterSize()}}
		if y != nil {
			w.chunk = newLayoutChunk(s.l, per)
		}
		return func(part int64) error {
			first := part * per
			return w.part(l1+first*8, part, min(per, entries-first))
		}
	})
}

type surveyWorker struct {
	*survey
	active bool
	layout *layout
	reader clusterReader
	chunk  *layoutChunk
	l1     []byte
	list   []located
}

// part walks some tables of an L1 table, whose entries for them are at offset at.
func (w *surveyWorker) part(at, part, entries int64) error {
	h := w.l.Header
	if w.l1 == nil {
		w.l1 = make([]byte, h.tablesPerPart()*8)
	}
	l1 := w.l1[:entries*8]
	if err := w.l.file.readMeta(l1, at, "the L1 table"); err != nil {
		return err
	}
	if w.chunk != nil {
		w.chunk.reset()
	}
	w.list = w.list[:0]
	for i := range int(entries) {
		entry := binary.BigEndian.Uint64(l1[i*8:])
		w.counts.l1Entry(entry, w.active)
		offset := int64(entry & entryOffset)
		switch {
		case offset == 0:
		case offset%h.ClusterSize() != 0 || offset > w.l.file.size-h.ClusterSize():
			// Whoever reads there is told what is wrong.
			w.counts.found("an L2 table at offset %d", offset)
			if w.chunk != nil {
				w.chunk.left = true
			}
		default:
			w.list = append(w.list, located{offset, i})
		}
	}
	if err := w.count(len(w.list)); err != nil {
		return err
	}
	if err := w.reader.each(w.list, "an L2 table", w.table); err != nil {
		return err
	}
	if w.chunk != nil && part < int64(len(w.layout.chunks)) {
		w.layout.chunks[part] = w.chunk.finish(w.layout, int(entries))
	}
	return nil
}

// table takes one L2 table.
func (w *surveyWorker) table(index int, table []byte) {
	if w.chunk != nil {
		w.chunk.begin(index)
		defer w.chunk.end(index)
	}
	tableRuns(table, w.l.Header, func(r tableRun) {
		if w.chunk != nil {
			w.chunk.add(r)
		}
		if w.counts != nil {
			w.counts.l2Entries(&r, w.active)
		}
	})
}

// survey makes the layer's layout, unless it has one. It is called where all of the tables, or
// most, are about to be walked. That it fails is for that walk to find, where it matters.
func (l *Layer) survey(ctx context.Context) {
	if l.Header == nil || l.cache.salvage {
		return
	}
	l.surveying.Lock()
	defer l.surveying.Unlock()
	switch {
	case l.layout.Load() != nil || l.surveyed:
	case l.refcountsWanted:
		l.count(ctx, defaultCounterLimits())
	default:
		s := &survey{l: l}
		y, err := s.active(ctx)
		l.keep(y, err)
	}
}

// keep keeps a layout that was made.
func (l *Layer) keep(y *layout, err error) {
	l.surveyed = true
	if err == nil {
		l.data.learnHoles()
		l.layout.Store(y)
	}
}

// worthSurvey is the length of a walk, in L2 tables, that is worth a survey.
const worthSurvey = 64

// Survey reads all mapping tables now, if they are worth a pass of their own: who walks the whole
// disk later finds that done.
func (c *Image) Survey() { c.surveyFor(0, c.Size(), true) }

// surveyFor surveys a layer, and those below it, if a walk over n bytes is worth it.
func (c *Image) surveyFor(layer int, n int64, below bool) {
	for i := layer; i < len(c.Layers) && (i == layer || below); i++ {
		l := c.Layers[i]
		if l.Header != nil && min(n, l.Size)/l.Header.l2Span() >= worthSurvey {
			l.survey(context.Background())
		}
	}
}
