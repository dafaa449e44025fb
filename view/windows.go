// SPDX-License-Identifier: Apache-2.0

package view

import (
	"context"
	"slices"
	"sort"
	"strconv"
	"sync"

	"golang.org/x/sync/singleflight"

	"github.com/imgbackup/imgbackup/archive"
)

// windowLimits say what a window is: a part of the disk whose entries are resolved at
// once and kept. To begin a replay costs a look into every map, however little is
// wanted of it.
type windowLimits struct {
	size    int64 // bytes of the disk
	entries int   // one that has more ends earlier
	kept    int   // entries of all windows together
}

// usualLimits keep some 14 MiB of a disk's entries at most.
func usualLimits() windowLimits {
	return windowLimits{size: 256 << 20, entries: 32 << 10, kept: 128 << 10}
}

// window holds the entries of [start, end), which cover it without gaps.
type window struct {
	start, end int64
	entries    []archive.Entry
}

// from returns the entries that end after off, which lies in the window.
func (w *window) from(off int64) []archive.Entry {
	i := sort.Search(len(w.entries), func(i int) bool { return w.entries[i].End() > off })
	return w.entries[i:]
}

// windows answers what any part of a disk is made of. It is safe for concurrent use.
type windows struct {
	limits windowLimits
	// reopen, if not nil, returns the layout as it is by now, where an error may come of
	// that; else what the error means.
	reopen   func(ctx context.Context, err error) (*Layout, error)
	renewing sync.Mutex      // held by who reopens
	ctx      context.Context // of the disk: a window is resolved for all who wait for it
	coming   singleflight.Group
	busy     *sync.RWMutex // held for reading by all who resolve

	mu     sync.Mutex
	layout *Layout
	renews int       // how often it was renewed
	all    []*window // the one last used comes last
	kept   int       // entries in them
}

// current is the layout that is read now.
func (ws *windows) current() *Layout {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return ws.layout
}

// renew puts the layout as it is by now in the place of old, in which an error was met.
// Where there is no other the error comes back.
func (ws *windows) renew(ctx context.Context, old *Layout, err error) error {
	if ws.reopen == nil {
		return err
	}
	ws.renewing.Lock()
	defer ws.renewing.Unlock()
	if ws.current() != old {
		return nil // another has done it
	}
	layout, err := ws.reopen(ctx, err)
	if layout == nil {
		return err
	}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.layout, ws.all, ws.kept = layout, nil, 0
	ws.renews++
	return nil
}

// at returns a window that holds off, which lies within the disk.
func (ws *windows) at(ctx context.Context, off int64) (*window, error) {
	for known := int64(0); ; {
		w, coming := ws.find(off, known)
		if w == nil {
			select {
			case got := <-coming:
				if got.Err != nil {
					return nil, got.Err
				}
				w = got.Val.(*window)
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
		if off < w.end {
			return w, nil
		}
		// It ended before off: the next one begins there, even if others have pushed
		// it out by now.
		known = w.end
	}
}

// find returns the window that holds off, or from where it will come, or one before it
// that begins at known or later.
func (ws *windows) find(off, known int64) (*window, <-chan singleflight.Result) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	start := max(off-off%ws.limits.size, known)
	for i := len(ws.all) - 1; i >= 0; i-- {
		w := ws.all[i]
		if w.start <= off && off < w.end {
			ws.all = append(slices.Delete(ws.all, i, i+1), w)
			return w, nil
		}
		if w.end <= off {
			start = max(start, w.end) // the window of this part that ended early
		}
	}
	// Under the lock: whoever resolves the same one has not kept it yet.
	return nil, ws.coming.DoChan(ws.flight(start), func() (any, error) { return ws.resolve(start) })
}

// flight is by what those know each other who want the same window of the same layout: what
// is resolved of an earlier one is not waited for, since its maps may be gone.
func (ws *windows) flight(start int64) string {
	return strconv.Itoa(ws.renews) + " " + strconv.FormatInt(start, 10)
}

// resolve replays the window that begins at start, and keeps it.
func (ws *windows) resolve(start int64) (*window, error) {
	ws.busy.RLock()
	defer ws.busy.RUnlock()
	if ws.ctx.Err() != nil {
		return nil, context.Cause(ws.ctx)
	}
	layout := ws.current()
	w := &window{start: start, end: start}
	to := min(start-start%ws.limits.size+ws.limits.size, layout.size)
	for e, err := range layout.Entries(ws.ctx, start, to) {
		if err != nil {
			return nil, err
		}
		w.entries = append(w.entries, e)
		w.end = e.End()
		if len(w.entries) == ws.limits.entries {
			break
		}
	}
	w.entries = slices.Clip(w.entries)
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.layout != layout {
		return w, nil // and it is not kept
	}
	ws.all = append(ws.all, w)
	ws.kept += len(w.entries)
	for ws.kept > ws.limits.kept && len(ws.all) > 1 {
		ws.kept -= len(ws.all[0].entries)
		ws.all = slices.Delete(ws.all, 0, 1)
	}
	return w, nil
}

// part is an entry, clipped to what is wanted.
type part struct {
	archive.Entry
	reach int64 // up to where the disk has bytes of the chunk here
	from  int64 // on the disk, where the entry begins
}

// whole is the entry as it was before it was clipped.
func (p *part) whole() archive.Entry {
	e := p.Entry
	before := e.Offset - p.from
	e.Offset, e.ChunkOffset = p.from, e.ChunkOffset-int32(before)
	e.Length = p.reach - int64(e.ChunkOffset)
	return e
}

// next returns the entries that [start, end) begins with, clipped to it: at most most.
func (ws *windows) next(ctx context.Context, start, end int64, most int) ([]part, error) {
	var list []part
	for start < end && len(list) < most {
		w, err := ws.at(ctx, start)
		if err != nil {
			return nil, err
		}
		for _, e := range w.from(start) {
			if e.Offset >= end || len(list) == most {
				break
			}
			reach, from := int64(e.ChunkOffset)+e.Length, e.Offset
			e.Clip(start, end)
			list = append(list, part{e, reach, from})
			start = e.End()
		}
	}
	return list, nil
}
