// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"cmp"
	"slices"
)

// request is a part of a pack that is read at once: frames that lie together.
type request struct {
	offset, end int64
	uses        []int // indexes of entries, sorted by frame
}

// maxGap is how much of a pack is read for nothing rather than begin a second request,
// bytes.
const maxGap = 256 << 10

// halveFrom is the length from which on a pack is read by two requests, where
// there are too few packs to keep all requests at work, bytes.
const halveFrom = 4 << 20

// plan sorts the entries by place and cuts them into requests: one for what is
// wanted of a pack, or two, on both sides of the widest gap if that is worth it.
// A request costs a store that is far away as much as some megabytes; but there each
// connection has its own rate, too. So what is read of such a store last is cut further
// (see share).
func (f *Fetcher) plan(entries []Entry) ([]request, error) {
	order := make([]int, 0, len(entries))
	for i := range entries {
		if entries[i].Zero {
			continue
		}
		if err := checkFrame(&entries[i], frameLimit(f.keys)); err != nil {
			return nil, &EntryError{Indexes: []int{i}, Entry: entries[i], Err: err}
		}
		order = append(order, i)
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Or(compareFrames(&entries[a], &entries[b]), cmp.Compare(a, b)) })
	var packs [][]int
	for len(order) > 0 {
		n := 1
		for n < len(order) && entries[order[n]].Pack == entries[order[0]].Pack {
			n++
		}
		packs = append(packs, order[:n:n])
		order = order[n:]
	}
	requests := make([]request, 0, 2*len(packs))
	for _, uses := range packs {
		cut := f.widestGap(entries, uses)
		if cut == 0 && len(packs) < f.requests() && !f.far {
			cut = middle(entries, uses)
		}
		if cut > 0 {
			requests = append(requests, newRequest(entries, uses[:cut]))
		}
		requests = append(requests, newRequest(entries, uses[cut:]))
	}
	if f.far {
		requests = f.share(entries, requests)
	}
	return requests, nil
}

// share cuts requests so that all connections are at work until the end: the first of
// some hundred packs are read whole, and the further it goes, the smaller are the pieces,
// down to halveFrom.
func (f *Fetcher) share(entries []Entry, requests []request) []request {
	rest := int64(0)
	for i := range requests {
		rest += requests[i].end - requests[i].offset
	}
	shared := make([]request, 0, 2*len(requests))
	for _, r := range requests {
		for {
			piece := max(halveFrom, rest/int64(2*f.requests()))
			cut := 0
			if r.end-r.offset >= 2*piece {
				cut = cutAt(entries, r.uses, r.offset+piece)
			}
			if cut == 0 {
				break
			}
			first := newRequest(entries, r.uses[:cut])
			shared = append(shared, first)
			rest -= first.end - first.offset
			r = newRequest(entries, r.uses[cut:])
		}
		shared = append(shared, r)
		rest -= r.end - r.offset
	}
	return shared
}

func newRequest(entries []Entry, uses []int) request {
	r := request{offset: entries[uses[0]].FrameOffset, uses: uses}
	for _, i := range uses {
		r.end = max(r.end, entries[i].frameEnd())
	}
	return r
}

// frameEnd is the offset in the pack after the frame.
func (e *Entry) frameEnd() int64 { return e.FrameOffset + int64(e.FrameLength) }

// widestGap returns before which use the widest gap lies that is not worth
// reading; 0 if there is none.
func (f *Fetcher) widestGap(entries []Entry, uses []int) (cut int) {
	widest, end := int64(maxGap), entries[uses[0]].frameEnd()
	for n, i := range uses {
		if gap := entries[i].FrameOffset - end; gap > widest {
			widest, cut = gap, n
		}
		end = max(end, entries[i].frameEnd())
	}
	return cut
}

// middle returns before which use the second half begins; 0 if it is not worth
// reading the halves apart.
func middle(entries []Entry, uses []int) int {
	whole := newRequest(entries, uses)
	if whole.end-whole.offset < halveFrom {
		return 0
	}
	return cutAt(entries, uses, whole.offset+(whole.end-whole.offset)/2)
}

// cutAt returns before which use, but not the first, the frames begin that lie behind an
// offset in the pack; 0 if none does.
func cutAt(entries []Entry, uses []int, at int64) int {
	for n, i := range uses {
		if e := &entries[i]; n > 0 && e.FrameOffset >= at && compareFrames(&entries[uses[n-1]], e) != 0 {
			return n
		}
	}
	return 0
}

func compareFrames(a, b *Entry) int {
	if c := bytes.Compare(a.Pack.Name[:], b.Pack.Name[:]); c != 0 {
		return c
	}
	if c := cmp.Or(cmp.Compare(a.Pack.Length, b.Pack.Length), cmp.Compare(a.FrameOffset, b.FrameOffset),
		cmp.Compare(a.FrameLength, b.FrameLength)); c != 0 {
		return c
	}
	return bytes.Compare(a.Chunk[:], b.Chunk[:])
}
