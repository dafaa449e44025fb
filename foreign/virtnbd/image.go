// SPDX-License-Identifier: Apache-2.0

package virtnbd

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sort"

	"github.com/imgbackup/imgbackup/qcow2"
)

// Format is what an image of streams is called where formats have names.
const Format qcow2.Format = "virtnbdbackup"

// Image is a disk as some streams make it up, each over the one before. It is safe for concurrent
// use; Close comes last.
type Image struct {
	layers []layer
	parts  []part
	size   int64
	cache  chunkCache
}

// layer is one file of an image.
type layer struct {
	file *qcow2.File
	*stream
}

// part is a range of the disk that one data frame holds.
type part struct {
	start, end int64
	layer      int32
	frame      int32
}

// openImage opens files, the full stream first; index is what is known of one that is open.
func openImage(paths []string, index func(*qcow2.File) (*stream, error)) (_ *Image, err error) {
	im := &Image{cache: newChunkCache()}
	defer func() {
		if err != nil {
			err = errors.Join(err, im.Close())
		}
	}()
	total := 0
	for i, path := range paths {
		f, err := qcow2.OpenFile(path)
		if err != nil {
			return nil, err
		}
		im.layers = append(im.layers, layer{file: f})
		l := &im.layers[i]
		if l.stream, err = index(f); err == nil && l.stream == nil {
			err = errors.New("it is no stream of virtnbdbackup")
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Path(), err)
		}
		if total += len(l.frames); total > maxDiskFrames {
			return nil, fmt.Errorf("%s: with it the disk has more than %d data frames", f.Path(), maxDiskFrames)
		}
		im.size = l.Size
		im.parts = over(im.parts, l.stream, int32(i))
	}
	im.parts = clip(im.parts, im.size)
	return im, nil
}

// over puts the data of a stream over parts.
func over(below []part, s *stream, layer int32) []part {
	if len(s.frames) == 0 {
		return below
	}
	all := make([]part, 0, len(below)+len(s.frames))
	i := 0
	for n := range s.frames {
		f := &s.frames[n]
		for ; i < len(below) && below[i].end <= f.start; i++ {
			all = append(all, below[i])
		}
		if i < len(below) && below[i].start < f.start {
			head := below[i]
			head.end = f.start
			all = append(all, head)
		}
		all = append(all, part{f.start, f.end(), layer, int32(n)})
		for ; i < len(below) && below[i].end <= f.end(); i++ {
		}
		if i < len(below) {
			below[i].start = max(below[i].start, f.end())
		}
	}
	return append(all, below[i:]...)
}

// clip takes away what lies beyond the disk: it was larger once.
func clip(parts []part, size int64) []part {
	n := sort.Search(len(parts), func(i int) bool { return parts[i].start >= size })
	if parts = parts[:n]; n > 0 {
		parts[n-1].end = min(parts[n-1].end, size)
	}
	return parts
}

// Size is the virtual size, bytes.
func (im *Image) Size() int64 { return im.size }

// How says for people what reads the image.
func (im *Image) How() string { return "imgbackup (streams of virtnbdbackup)" }

// Sources are the files that the image is made of, the full one first; they are the image's.
func (im *Image) Sources() []*qcow2.File {
	var all []*qcow2.File
	for i := range im.layers {
		all = append(all, im.layers[i].file)
	}
	return all
}

// Held yields what one of the files holds of the disk.
func (im *Image) Held(source int) iter.Seq[qcow2.Extent] {
	return func(yield func(qcow2.Extent) bool) {
		for _, f := range im.layers[source].frames {
			if !yield(qcow2.Extent{Offset: f.start, Length: f.length, Kind: qcow2.Data}) {
				return
			}
		}
	}
}

// Close closes the files.
func (im *Image) Close() error {
	var errs []error
	for i := range im.layers {
		errs = append(errs, im.layers[i].file.Close())
	}
	return errors.Join(errs...)
}

// find is the first part that ends behind a place of the disk.
func (im *Image) find(at int64) int {
	return sort.Search(len(im.parts), func(i int) bool { return im.parts[i].end > at })
}

// Extents covers [start, end) without gaps.
func (im *Image) Extents(start, end int64) iter.Seq2[qcow2.Extent, error] {
	return func(yield func(qcow2.Extent, error) bool) {
		for i := im.find(start); start < end; i++ {
			next := qcow2.Extent{Offset: start, Length: end - start, Kind: qcow2.Hole}
			if i < len(im.parts) && im.parts[i].start < end {
				p := &im.parts[i]
				if p.start > start {
					hole := next
					hole.Length = p.start - start
					if !yield(hole, nil) {
						return
					}
					start = p.start
				}
				next = qcow2.Extent{Offset: start, Length: min(end, p.end) - start, Kind: qcow2.Data}
			}
			if !yield(next, nil) {
				return
			}
			start += next.Length
		}
	}
}

// ReadAt fills p, which lies within the disk.
func (im *Image) ReadAt(ctx context.Context, p []byte, off int64) error {
	for i := im.find(off); len(p) > 0; i++ {
		end := off + int64(len(p))
		if i == len(im.parts) || im.parts[i].start >= end {
			clear(p)
			return nil
		}
		part := &im.parts[i]
		if gap := part.start - off; gap > 0 {
			clear(p[:gap])
			p, off = p[gap:], part.start
		}
		n := min(end, part.end) - off
		if err := im.readPart(ctx, part, p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// readPart fills p with what a part holds at off of the disk.
func (im *Image) readPart(ctx context.Context, part *part, p []byte, off int64) error {
	l := &im.layers[part.layer]
	f := &l.frames[part.frame]
	if err := ctx.Err(); err != nil {
		return err
	}
	if !l.Compressed {
		if _, err := l.file.ReadAt(p, f.at+off-f.start); err != nil {
			return fmt.Errorf("%s: %w", l.file.Path(), unexpected(err))
		}
		return nil
	}
	at := f.start
	for i := f.at; len(p) > 0; i++ {
		c := l.chunks[i]
		if end := at + int64(c.length); end > off {
			data, err := im.cache.get(ctx, chunkKey{part.layer, i}, func() ([]byte, error) { return decode(l.file, c) })
			if err != nil {
				return fmt.Errorf("%s: %w", l.file.Path(), err)
			}
			n := copy(p, data[off-at:])
			p, off = p[n:], off+int64(n)
		}
		at += int64(c.length)
	}
	return nil
}

var _ interface {
	qcow2.Foreign
	qcow2.Stacked
} = (*Image)(nil)
