// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/nbd"
)

// Disk is one disk of a checkpoint, as a read-only [nbd.Device]. It is safe for
// concurrent use.
type Disk struct {
	Target string
	size   int64
	layout *layout
	chunks *chunks
	ahead  ahead
}

// Size is the disk's virtual size, bytes.
func (d *Disk) Size() int64 { return d.size }

// ReadAt implements [nbd.Device].
func (d *Disk) ReadAt(ctx context.Context, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	end := off + int64(len(p))
	entries, err := d.layout.entries(ctx, off, end, nil)
	if err != nil {
		return err
	}
	all := d.chunks.acquire(entries)
	defer d.chunks.release(all...)
	d.ahead.read(d, off)
	for i := range entries {
		e := &entries[i]
		to := p[e.Offset-off : e.End()-off]
		if e.Zero {
			clear(to)
			continue
		}
		data, err := all[i].wait(ctx, e)
		if err != nil {
			return err
		}
		copy(to, data)
	}
	return nil
}

// Allocation is the context base:allocation: what the repository holds as zeros is
// a hole.
func (d *Disk) Allocation(ctx context.Context, start, end int64) iter.Seq2[nbd.Extent, error] {
	return func(yield func(nbd.Extent, error) bool) {
		for pos := start; pos < end; {
			w, err := d.layout.at(ctx, pos)
			if err != nil {
				yield(nbd.Extent{}, err)
				return
			}
			for _, e := range w.from(pos) {
				if e.Offset >= end {
					return
				}
				if e.Zero && !yield(nbd.Extent{Start: e.Offset, End: e.End(), Flags: nbd.StateHole | nbd.StateZero}, nil) {
					return
				}
			}
			pos = w.end
		}
	}
}

// The unit and the depth of reading ahead: what a reader that goes on from one
// segment to the next will want soon is fetched before it asks.
const (
	segmentSize  = 4 << 20
	aheadDepth   = 3
	aheadAtOnce  = 4
	keptSegments = 256
)

// ahead sees who reads on, and fetches what comes next.
type ahead struct {
	mu      sync.Mutex
	seen    recent // segments that were read from
	fetched recent // segments that were fetched ahead
	now     int    // fetches at work
}

// recent remembers the last few numbers it was told.
type recent struct {
	ring [keptSegments]int64
	set  map[int64]bool
	next int
}

// add tells whether n is new.
func (r *recent) add(n int64) bool {
	if r.set == nil {
		r.set = make(map[int64]bool)
		for i := range r.ring {
			r.ring[i] = -1
		}
	}
	if r.set[n] {
		return false
	}
	delete(r.set, r.ring[r.next])
	r.ring[r.next], r.set[n] = n, true
	r.next = (r.next + 1) % keptSegments
	return true
}

// read is told of a read at off.
func (a *ahead) read(d *Disk, off int64) {
	n := off / segmentSize
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.seen.add(n) || n == 0 || !a.seen.set[n-1] {
		return
	}
	for s := n + 1; s <= n+aheadDepth && s*segmentSize < d.size && a.now < aheadAtOnce; s++ {
		if a.fetched.add(s) {
			a.now++
			d.chunks.work.Go(func() {
				a.fetch(d, s)
				a.mu.Lock()
				a.now--
				a.mu.Unlock()
			})
		}
	}
}

// fetch has a segment's chunks fetched. What fails is met again, and told, by the
// read that wants it.
func (a *ahead) fetch(d *Disk, s int64) {
	ctx := d.chunks.ctx
	start := s * segmentSize
	entries, err := d.layout.entries(ctx, start, min(start+segmentSize, d.size), nil)
	if err != nil {
		return
	}
	all := d.chunks.acquire(entries)
	for i := range entries {
		if all[i] != nil {
			_, _ = all[i].wait(ctx, &entries[i])
		}
	}
	d.chunks.release(all...)
}

// Checkpoint is what a server offers: the disks of one checkpoint.
type Checkpoint struct {
	Manifest *chain.Manifest
	Disks    []*Disk

	repo   *chain.Repository
	cancel context.CancelFunc
	chunks *chunks
}

// Options are the settings of Open; the zero value is good.
type Options struct {
	Disks []string // which; none: all
	Cache int64    // bytes of decoded chunks that are kept; 0: 64 MiB
}

// ErrUnknownDisk says that the checkpoint has no disk of that name.
var ErrUnknownDisk = errors.New("no such disk in the checkpoint")

// Open opens the disks of a checkpoint for as long as ctx lasts, or until Close.
func Open(ctx context.Context, repo *chain.Repository, m *chain.Manifest, o Options) (*Checkpoint, error) {
	if m.Kind != chain.KindArchive {
		return nil, fmt.Errorf("checkpoint %s holds no data: it is only in the images", m.Checkpoint)
	}
	if o.Cache <= 0 {
		o.Cache = 64 << 20
	}
	ctx, cancel := context.WithCancel(ctx)
	c := &Checkpoint{Manifest: m, repo: repo, cancel: cancel}
	c.chunks = newChunks(ctx, repo.Store, o.Cache)
	if err := c.open(ctx, o.Disks); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Checkpoint) open(ctx context.Context, names []string) error {
	if len(names) == 0 {
		for i := range c.Manifest.Disks {
			names = append(names, c.Manifest.Disks[i].Target)
		}
	}
	for _, name := range names {
		entry, ok := c.Manifest.Disk(name)
		if !ok {
			return fmt.Errorf("%w %s: %.80q", ErrUnknownDisk, c.Manifest.Checkpoint, name)
		}
		for _, d := range c.Disks {
			if d.Target == name {
				return fmt.Errorf("disk %s is given twice", name)
			}
		}
		if len(entry.Maps) == 0 {
			return fmt.Errorf("disk %s of checkpoint %s has no data in the repository", name, c.Manifest.Checkpoint)
		}
		maps, err := chain.ReplayMaps(ctx, c.repo, entry)
		if err != nil {
			return fmt.Errorf("disk %s: %w", name, err)
		}
		c.Disks = append(c.Disks, &Disk{Target: name, size: entry.Size, layout: newLayout(ctx, maps), chunks: c.chunks})
	}
	return nil
}

// Close ends all that is at work.
func (c *Checkpoint) Close() {
	c.cancel()
	c.chunks.work.Wait() // what reads ahead asks the layouts
	for _, d := range c.Disks {
		d.layout.work.Wait()
	}
}

// Changes returns, for each disk that older has too, what may read otherwise than
// there: see [archive.DiffIn]. What older does not have counts as changed.
func (c *Checkpoint) Changes(ctx context.Context, older *chain.Manifest, d *Disk) (func(ctx context.Context, start, end int64) bitmapstore.Runs, error) {
	entry, ok := older.Disk(d.Target)
	if !ok || older.Kind != chain.KindArchive || len(entry.Maps) == 0 {
		return nil, fmt.Errorf("checkpoint %s holds no data of disk %s to compare with", older.Checkpoint, d.Target)
	}
	maps, err := chain.ReplayMaps(ctx, c.repo, entry)
	if err != nil {
		return nil, fmt.Errorf("checkpoint %s, disk %s: %w", older.Checkpoint, d.Target, err)
	}
	return func(ctx context.Context, start, end int64) bitmapstore.Runs {
		return archive.DiffIn(ctx, d.layout.maps, maps, start, end)
	}, nil
}
