// SPDX-License-Identifier: Apache-2.0

package view

import (
	"context"
	"slices"
	"sort"
	"sync"

	"github.com/imgbackup/imgbackup/archive"
)

// A window is a part of the disk whose entries are resolved at once and kept: to
// begin a replay costs a look into every map, however little is wanted of it.
const (
	windowSize    = 256 << 20
	windowEntries = 32 << 10  // one that has more ends earlier
	keptEntries   = 128 << 10 // of all windows together, some 14 MiB
)

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

// layout answers what a disk's bytes are made of. It is safe for concurrent use.
type layout struct {
	ctx  context.Context // of the disk: a window is resolved for all who wait for it
	maps []*archive.Map
	size int64

	mu      sync.Mutex
	windows []*window // the one last used comes last
	kept    int       // entries in them
	flights map[int64]*flight
	work    sync.WaitGroup
}

// flight is a window that is being resolved.
type flight struct {
	done chan struct{}
	w    *window
	err  error
}

func newLayout(ctx context.Context, maps []*archive.Map) *layout {
	return &layout{ctx: ctx, maps: maps, size: maps[0].Size(), flights: make(map[int64]*flight)}
}

// at returns a window that holds off, which lies within the disk.
func (l *layout) at(ctx context.Context, off int64) (*window, error) {
	l.mu.Lock()
	start := off - off%windowSize
	for i := len(l.windows) - 1; i >= 0; i-- {
		w := l.windows[i]
		if w.start <= off && off < w.end {
			l.windows = append(slices.Delete(l.windows, i, i+1), w)
			l.mu.Unlock()
			return w, nil
		}
		if w.end <= off {
			start = max(start, w.end) // the window of this part that ended early
		}
	}
	f := l.flights[start]
	if f == nil {
		f = &flight{done: make(chan struct{})}
		l.flights[start] = f
		l.work.Go(func() { l.resolve(f, start) })
	}
	l.mu.Unlock()
	select {
	case <-f.done:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if f.err != nil {
		return nil, f.err
	}
	if off >= f.w.end {
		return l.at(ctx, off) // it ended before off; the next one begins there
	}
	return f.w, nil
}

// resolve replays the window that begins at start.
func (l *layout) resolve(f *flight, start int64) {
	w := &window{start: start, end: start}
	to := min(start-start%windowSize+windowSize, l.size)
	for e, err := range archive.Replay(l.ctx, l.maps, start, to) {
		if err != nil {
			f.err = err
			break
		}
		w.entries = append(w.entries, e)
		w.end = e.End()
		if len(w.entries) == windowEntries {
			break
		}
	}
	w.entries = slices.Clip(w.entries)
	f.w = w
	l.mu.Lock()
	delete(l.flights, start)
	if f.err == nil {
		l.windows = append(l.windows, w)
		l.kept += len(w.entries)
		for l.kept > keptEntries && len(l.windows) > 1 {
			l.kept -= len(l.windows[0].entries)
			l.windows = slices.Delete(l.windows, 0, 1)
		}
	}
	l.mu.Unlock()
	close(f.done)
}

// entries appends the entries of [start, end), clipped to it.
func (l *layout) entries(ctx context.Context, start, end int64, list []archive.Entry) ([]archive.Entry, error) {
	for pos := start; pos < end; {
		w, err := l.at(ctx, pos)
		if err != nil {
			return list, err
		}
		for _, e := range w.from(pos) {
			if e.Offset >= end {
				break
			}
			e.Clip(pos, end)
			list = append(list, e)
			pos = e.End()
		}
	}
	return list, nil
}
