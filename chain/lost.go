// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"cmp"
	"fmt"
	"slices"
	"sync"

	"github.com/imgbackup/imgbackup/bitmapstore"
)

// Lost is a range of a disk that a checkpoint ought to hold and does not: it could not
// be read when the disk was backed up, or what was stored of it is gone.
type Lost struct {
	Offset int64  `json:"offset"` // guest bytes
	Length int64  `json:"length"`
	Reason string `json:"reason"` // for people, at most MaxLostReason bytes
}

// Bounds of what a disk has lost.
const (
	MaxLost       = 1 << 14 // ranges
	MaxLostReason = 255     // bytes
)

// End is the first byte after the range.
func (l *Lost) End() int64 { return l.Offset + l.Length }

// Losses makes of ranges, in any order, what a disk of size bytes records: sorted, cut
// to the disk, without overlaps, and those joined that touch and have one reason. Where
// there are more than MaxLost, those that lie closest are joined: what lies between
// counts as lost, too.
func Losses(ranges []Lost, size int64) []Lost {
	var out []Lost
	sorted := slices.Clone(ranges)
	slices.SortStableFunc(sorted, func(a, b Lost) int { return cmp.Compare(a.Offset, b.Offset) })
	for _, l := range sorted {
		l.Reason = readable(l.Reason, MaxLostReason)
		end := min(l.End(), size)
		if n := len(out); n > 0 {
			last := &out[n-1]
			if l.Reason == last.Reason && l.Offset <= last.End() {
				last.Length = max(end, last.End()) - last.Offset
				continue
			}
			l.Offset = max(l.Offset, last.End())
		}
		if l.Length = end - l.Offset; l.Length > 0 {
			out = append(out, l)
		}
	}
	if len(out) > MaxLost {
		out = joinClosest(out)
	}
	return out
}

// LossSet gathers the lost ranges of a disk. It is safe for concurrent use.
type LossSet struct {
	size int64 // of the disk, bytes

	mu   sync.Mutex
	list []Lost
	tidy int // how many of list are as [Losses] returned them
}

// NewLossSet returns an empty set for a disk of size bytes.
func NewLossSet(size int64) *LossSet { return &LossSet{size: size} }

// Add takes a range, which may have been added before.
func (l *LossSet) Add(r Lost) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, r)
	if len(l.list) > 2*(l.tidy+MaxLost) {
		l.list = Losses(l.list, l.size)
		l.tidy = len(l.list)
	}
}

// All are the ranges, as a manifest records them.
func (l *LossSet) All() []Lost {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Losses(l.list, l.size)
}

// joinClosest joins the ranges that lie closest, until there are no more than MaxLost.
func joinClosest(sorted []Lost) []Lost {
	gaps := make([]int64, 0, len(sorted)-1)
	for i := range sorted[1:] {
		gaps = append(gaps, sorted[i+1].Offset-sorted[i].End())
	}
	slices.Sort(gaps)
	most := gaps[len(sorted)-MaxLost-1]
	out := sorted[:1]
	for _, l := range sorted[1:] {
		if last := &out[len(out)-1]; l.Offset-last.End() <= most {
			last.Length = l.End() - last.Offset
		} else {
			out = append(out, l)
		}
	}
	return slices.Clip(out)
}

// LostRuns is what the disk has lost; nil: nothing.
func (d *Disk) LostRuns() bitmapstore.Runs {
	if len(d.Lost) == 0 {
		return nil
	}
	return bitmapstore.Join(func(yield func(bitmapstore.Run, error) bool) {
		for i := range d.Lost {
			if !yield(bitmapstore.Run{Start: d.Lost[i].Offset, End: d.Lost[i].End()}, nil) {
				return
			}
		}
	})
}

// LostBytes is how much the disk has lost.
func (d *Disk) LostBytes() (n int64) {
	for i := range d.Lost {
		n += d.Lost[i].Length
	}
	return n
}

// LostBytes is how much the checkpoint's disks have lost.
func (m *Manifest) LostBytes() (n int64) {
	for i := range m.Disks {
		n += m.Disks[i].LostBytes()
	}
	return n
}

// validateLost: sorted, within the disk, of an archive only.
func (d *Disk) validateLost(c *checker, kind string) {
	c.that(kind == KindArchive || len(d.Lost) == 0, "a checkpoint without data has lost %d ranges", len(d.Lost))
	c.that(len(d.Lost) <= MaxLost, "%d lost ranges", len(d.Lost))
	var next int64
	for i := range d.Lost {
		l := &d.Lost[i]
		c.that(l.Offset >= next && l.Length > 0 && l.Length <= d.Size && l.Offset <= d.Size-l.Length,
			"a lost range of %d bytes at %d, after %d, of a disk of %d bytes", l.Length, l.Offset, next, d.Size)
		c.text("reason of a lost range", l.Reason, MaxLostReason)
		if c.err != nil {
			return
		}
		next = l.End()
	}
}

// LostError says that a disk of a checkpoint has lost ranges, so that it cannot be had whole.
type LostError struct{ Disk *Disk }

func (e *LostError) Error() string {
	first := e.Disk.Lost[0]
	return fmt.Sprintf("disk %s is not whole: the checkpoint has lost %d bytes of it in %d ranges, the first %d at %d (%s)",
		e.Disk.Name, e.Disk.LostBytes(), len(e.Disk.Lost), first.Length, first.Offset, first.Reason)
}

// AboutDisk is the disk's name.
func (e *LostError) AboutDisk() string { return e.Disk.Name }
