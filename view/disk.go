// SPDX-License-Identifier: Apache-2.0

package view

import (
	"context"

	"github.com/imgbackup/imgbackup/bitmapstore"
)

// Disk is one disk of a checkpoint, to be read. It is safe for concurrent use.
type Disk struct {
	Name   string
	size   int64
	layout *layout
	chunks *chunks
	ahead  ahead
}

// Size is the disk's virtual size, bytes.
func (d *Disk) Size() int64 { return d.size }

// ReadAt fills p with the bytes at off, all of which lie within the disk. What is
// missing or damaged is an [archive.DamageError], of what p needs and of nothing else.
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

// Zeros is where the repository holds the part of the disk in [start, end) as zeros.
func (d *Disk) Zeros(ctx context.Context, start, end int64) bitmapstore.Runs {
	return bitmapstore.Join(func(yield func(bitmapstore.Run, error) bool) {
		for pos := start; pos < end; {
			w, err := d.layout.at(ctx, pos)
			if err != nil {
				yield(bitmapstore.Run{}, err)
				return
			}
			for _, e := range w.from(pos) {
				if e.Offset >= end {
					return
				}
				run := bitmapstore.Run{Start: max(e.Offset, start), End: min(e.End(), end)}
				if e.Zero && !yield(run, nil) {
					return
				}
			}
			pos = w.end
		}
	})
}
