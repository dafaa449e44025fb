// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"sort"
	"sync/atomic"
)

// layout is what the mapping tables of a layer say, in short: the runs of clusters that lie one
// after the other. It is made by a [survey], and spares later walks the tables: where clusters
// lie as they were preallocated, some bytes stand for a table of 64 KiB. What is compressed, has
// subclusters of several kinds or is damaged, and what would take too many runs, is left out:
// there the tables themselves are read, as if there were no layout.
type layout struct {
	span   int64         // guest bytes of a chunk
	chunks [][]layoutRun // nil: the tables have to be read
	runs   atomic.Int64  // held in all
}

// layoutRun is where clusters of the guest lie, up to where the next run of the chunk begins.
type layoutRun struct {
	host  int64  // of Data: offset in the data file
	start uint32 // clusters from the beginning of the chunk
	kind  Kind
}

const (
	// maxLayout bounds the runs that are held of a layer, 16 bytes each.
	maxLayout = 1 << 20
	// entriesPerRun is how many entries a run stands for at least, on an average over a chunk.
	entriesPerRun = 8
)

// find returns the runs of the chunk that off lies in, and where that begins; nil: the tables
// have to be read.
func (y *layout) find(off int64) (start int64, runs []layoutRun) {
	i := off / y.span
	return i * y.span, y.chunks[i]
}

// layoutChunk makes a chunk of a layout, from tables that come in any order. It is one worker's.
type layoutChunk struct {
	l       *Layer
	most    int              // runs
	left    bool             // the chunk is left out
	runs    []layoutRun      // of one table after the other
	byTable map[int][2]int32 // from and to in runs
}

func newLayoutChunk(l *Layer, tables int64) *layoutChunk {
	entries := tables * (l.Header.ClusterSize() / l.Header.l2EntryBytes())
	return &layoutChunk{l: l, most: int(max(entries/entriesPerRun, tables)), byTable: map[int][2]int32{}}
}

// reset begins a chunk.
func (c *layoutChunk) reset() {
	c.left, c.runs = false, c.runs[:0]
	clear(c.byTable)
}

// begin begins with a table, the index-th of the chunk; end ends it.
func (c *layoutChunk) begin(index int) {
	c.byTable[index] = [2]int32{int32(len(c.runs)), 0}
}

func (c *layoutChunk) end(index int) {
	c.byTable[index] = [2]int32{c.byTable[index][0], int32(len(c.runs))}
}

// add takes the next run of the table.
func (c *layoutChunk) add(r tableRun) {
	if c.left {
		return
	}
	kind, ok := r.kind(c.l.Header)
	switch {
	case !ok || len(c.runs) >= c.most:
		c.left = true
		return
	case kind == Data && !c.holds(&r):
		c.left = true
		return
	}
	run := layoutRun{start: uint32(r.first), kind: kind}
	if kind == Data {
		run.host = r.host()
	}
	c.runs = append(c.runs, run)
}

// holds reports whether the data file has the clusters of a run, whole and at their places. Where
// it has not, the tables are read, and tell what is wrong.
func (c *layoutChunk) holds(r *tableRun) bool {
	h := c.l.Header
	return r.host()&(h.ClusterSize()-1) == 0 && r.end(h) <= min(c.l.data.size, int64(entryOffset)) && c.l.data == c.l.file
}

// finish returns the runs of a chunk of that many tables, in order; nil: it is left out.
func (c *layoutChunk) finish(y *layout, tables int) []layoutRun {
	if c.left {
		return nil
	}
	h := c.l.Header
	perTable := uint32(h.l2Span() >> h.ClusterBits)
	var all []layoutRun
	add := func(r layoutRun) {
		if n := len(all); n > 0 && r.kind == all[n-1].kind {
			last := &all[n-1]
			if r.kind != Data || last.host+int64(r.start-last.start)<<h.ClusterBits == r.host {
				return
			}
		}
		all = append(all, r)
	}
	for i := range tables {
		base := uint32(i) * perTable
		part, ok := c.byTable[i]
		if !ok {
			add(layoutRun{start: base})
			continue
		}
		for _, r := range c.runs[part[0]:part[1]] {
			r.start += base
			add(r)
		}
	}
	if y.runs.Add(int64(len(all))) > maxLayout {
		y.runs.Add(-int64(len(all)))
		return nil
	}
	return all
}

// segment is what the runs of a chunk that begins at start say of off, up to end. hint is the run
// that was used before, and becomes the one that is used now.
func (h *Header) segment(runs []layoutRun, start, off, end int64, hint *int) segment {
	cluster := uint32((off - start) >> h.ClusterBits)
	i := *hint
	if i >= len(runs) || runs[i].start > cluster || i+1 < len(runs) && runs[i+1].start <= cluster {
		i = sort.Search(len(runs), func(i int) bool { return runs[i].start > cluster }) - 1
		*hint = i
	}
	r := runs[i]
	if i+1 < len(runs) {
		end = min(end, start+int64(runs[i+1].start)<<h.ClusterBits)
	}
	s := segment{length: end - off, kind: r.kind}
	if r.kind == Data {
		s.host = r.host + off - start - int64(r.start)<<h.ClusterBits
	}
	return s
}
