// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"iter"
	"slices"

	"github.com/imgbackup/imgbackup/bitmapstore"
)

// Stacked is a [Sourced] image each of whose files holds parts of the disk that lie over those of
// the files before it.
type Stacked interface {
	Sourced
	// Held yields what one of the sources holds of the disk, ascending: of its extents only where
	// they are counts, and some may lie beyond the disk.
	Held(source int) iter.Seq[Extent]
}

// Stack is what a disk was made up of: files, of which each lies over the one before.
type Stack struct {
	size  int64
	files []stackedFile
}

type stackedFile struct {
	id     FileID
	format Format
	read   string // by what
}

// Stack is what the disk is made up of; false: of more than files over one another.
func (c *Image) Stack() (*Stack, bool) {
	s := &Stack{size: c.Size()}
	for _, l := range slices.Backward(c.Layers) {
		files := l.Files()
		if _, ok := l.foreign.(Stacked); len(files) != 1 && !ok {
			return nil, false
		}
		for _, f := range files {
			s.files = append(s.files, stackedFile{f.Opened(), l.Format, l.ReadBy()})
		}
	}
	return s, true
}

// Above is where the disk may differ from another: what the files hold that lie over those of the
// other. false: it does not lie over just these, as they were then, or is not of the same size.
func (c *Image) Above(ctx context.Context, below *Stack) (bitmapstore.Runs, bool) {
	mine, ok := c.Stack()
	n := len(below.files)
	if !ok || c.Size() != below.size || n >= len(mine.files) || !slices.Equal(mine.files[:n], below.files) {
		return nil, false
	}
	if s, ok := c.Layers[0].foreign.(Stacked); ok && len(c.Layers) == 1 {
		return c.aboveSources(ctx, s, n), true
	}
	if len(c.Layers) != len(mine.files) {
		return nil, false
	}
	var above []bitmapstore.Runs
	for i, l := range c.Layers[:len(c.Layers)-n] {
		if l.Size != c.Size() { // beyond the end of a smaller one nothing below it shows
			return nil, false
		}
		above = append(above, c.Allocated(ctx, i))
	}
	return bitmapstore.Union(above...), true
}

func (c *Image) aboveSources(ctx context.Context, s Stacked, n int) bitmapstore.Runs {
	var above []bitmapstore.Runs
	for i := n; i < len(s.Sources()); i++ {
		above = append(above, bitmapstore.Join(func(yield func(bitmapstore.Run, error) bool) {
			for e := range s.Held(i) {
				if err := ctx.Err(); err != nil {
					yield(bitmapstore.Run{}, err)
					return
				}
				if !yield(bitmapstore.Run{Start: e.Offset, End: e.Offset + e.Length}, nil) {
					return
				}
			}
		}).Clip(c.Size()))
	}
	return bitmapstore.Union(above...)
}
