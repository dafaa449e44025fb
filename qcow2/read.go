// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// Compressed clusters that lie close together in the file are read at once, up
// to maxCompressedRun bytes, with gaps of at most maxCompressedGap.
const (
	maxCompressedRun = 2 << 20
	maxCompressedGap = 4 << 10
)

// ReadAt fills p with guest data of the active layer. What is allocated nowhere reads as zeros;
// bytes beyond the end of the disk are an error that is [io.ErrUnexpectedEOF]. It fails with a
// [*DamageError] where an image's metadata is wrong, or says that data lies beyond the end of a
// file. It gives up when ctx ends while it waits for [OpenOptions.ReadLimit], or for another
// program that reads the image.
func (c *Image) ReadAt(ctx context.Context, p []byte, off int64) error {
	if size := c.Size(); off < 0 || int64(len(p)) > size-off {
		return fmt.Errorf("%s: %d bytes at %d are not all within the disk, which has %d: %w",
			c.Layers[0].Path, len(p), off, size, io.ErrUnexpectedEOF)
	}
	return c.readLayer(ctx, 0, p, off)
}

// readLayer fills p with what a layer and those below it hold at off. Beyond
// the layer's end are zeros.
func (c *Image) readLayer(ctx context.Context, layer int, p []byte, off int64) error {
	if layer >= len(c.Layers) || off >= c.Layers[layer].Size {
		clear(p)
		return nil
	}
	l := c.Layers[layer]
	if beyond := off + int64(len(p)) - l.Size; beyond > 0 {
		clear(p[int64(len(p))-beyond:])
		p = p[:int64(len(p))-beyond]
	}
	if l.foreign != nil {
		if err := c.waitLimit(ctx, len(p)); err != nil {
			return err
		}
		if err := l.foreign.ReadAt(ctx, p, off); err != nil {
			return fmt.Errorf("%s: %w", l.Path, err)
		}
		return nil
	}
	if l.Header == nil {
		return c.readHost(ctx, l.data, p, off)
	}
	r := segmentReader{cursor: cursor{l: l}, off: off, end: off + int64(len(p))}
	for len(p) > 0 {
		s, err := r.next()
		if err != nil {
			return err
		}
		part := p[:s.length]
		switch s.kind {
		case Hole:
			err = c.readLayer(ctx, layer+1, part, off)
		case Zero:
			clear(part)
		case Data:
			err = c.readHost(ctx, l.data, part, s.host)
		case Compressed:
			var n int64
			if n, err = c.readCompressed(ctx, &r, s, p, off); err == nil {
				part = p[:n]
			}
		}
		if err != nil {
			return err
		}
		p, off = p[len(part):], off+int64(len(part))
	}
	return nil
}

// segmentReader yields the segments of a range of one layer, joined.
type segmentReader struct {
	cursor
	off, end int64
	ahead    segment // begins at off, if its length is not 0
}

func (r *segmentReader) next() (segment, error) {
	s := r.ahead
	r.ahead = segment{}
	if s.length == 0 {
		var err error
		if s, err = r.at(r.off, r.end); err != nil {
			return s, err
		}
	}
	r.off += s.length
	for r.off < r.end {
		next, err := r.at(r.off, r.end)
		if err != nil {
			return s, err
		}
		if !s.joins(&next) {
			r.ahead = next
			break
		}
		s.length += next.length
		r.off += next.length
	}
	return s, nil
}

// ReadDirect lets guest data be read past the page cache from now on, wherever that is possible:
// of an image that was just written, what the medium has. Nothing is read meanwhile.
func (c *Image) ReadDirect() {
	for _, l := range c.Layers {
		if l.data != nil && l.data.direct == nil {
			l.data.direct = sys.OpenDirect(l.data.f)
		}
	}
}

// readHost fills p from a file that holds guest data. What lies beyond the end
// of the file reads as zeros: the caller has checked that it is less than a
// cluster.
func (c *Image) readHost(ctx context.Context, f *File, p []byte, off int64) error {
	if beyond := off + int64(len(p)) - f.size; beyond > 0 {
		inFile := max(0, int64(len(p))-beyond)
		clear(p[inFile:])
		p = p[:inFile]
	}
	if len(p) == 0 {
		return nil
	}
	if err := c.waitLimit(ctx, len(p)); err != nil {
		return err
	}
	return f.readData(p, off)
}

// waitLimit waits until n bytes may be read.
func (c *Image) waitLimit(ctx context.Context, n int) error {
	limit := c.opts.ReadLimit
	if limit == nil {
		return ctx.Err()
	}
	for n > 0 {
		part := n
		if burst := limit.Burst(); burst > 0 {
			part = min(n, burst)
		}
		if err := limit.WaitN(ctx, part); err != nil {
			return fmt.Errorf("wait for the read limit: %w", err)
		}
		n -= part
	}
	return nil
}

// buffers keeps byte slices for reuse.
type buffers struct{ pool sync.Pool }

func (b *buffers) get(n int64) *[]byte {
	if p, ok := b.pool.Get().(*[]byte); ok && int64(cap(*p)) >= n {
		*p = (*p)[:n]
		return p
	}
	p := make([]byte, n)
	return &p
}

func (b *buffers) put(p *[]byte) { b.pool.Put(p) }

// readCompressed decompresses the cluster of segment s, which is at off in the
// disk, and those that follow it closely in disk and file, into p. It returns
// how many bytes of p it filled.
func (c *Image) readCompressed(ctx context.Context, r *segmentReader, s segment, p []byte, off int64) (int64, error) {
	run := []segment{s}
	start, end := s.host, s.host+s.stored
	for r.ahead.kind == Compressed && r.ahead.length > 0 {
		n := r.ahead
		if n.host < start || n.host > end+maxCompressedGap || max(end, n.host+n.stored)-start > maxCompressedRun {
			break
		}
		end = max(end, n.host+n.stored)
		if _, err := r.next(); err != nil {
			return 0, err
		}
		run = append(run, n)
	}
	if err := c.waitLimit(ctx, int(end-start)); err != nil {
		return 0, err
	}
	raw := c.buffers.get(end - start)
	defer c.buffers.put(raw)
	if err := r.l.file.readData(*raw, start); err != nil {
		return 0, err
	}
	z := c.decompressors.get()
	defer c.decompressors.put(z)
	filled := int64(0)
	for _, s := range run {
		stored := (*raw)[s.host-start:][:s.stored]
		if err := c.decompress(z, r.l, p[filled:][:s.length], stored, off+filled); err != nil {
			return 0, compressedError(r.l, s.host, err)
		}
		filled += s.length
	}
	return filled, nil
}

// decompress fills part, which lies within one cluster, from what is stored of
// that cluster.
func (c *Image) decompress(z *decompressor, l *Layer, part, stored []byte, off int64) error {
	cs := l.Header.ClusterSize()
	if int64(len(part)) == cs {
		return z.cluster(part, stored, l.Header.Compression)
	}
	whole := c.buffers.get(cs)
	defer c.buffers.put(whole)
	if err := z.cluster(*whole, stored, l.Header.Compression); err != nil {
		return err
	}
	copy(part, (*whole)[off&(cs-1):])
	return nil
}

func compressedError(l *Layer, host int64, err error) error {
	return &DamageError{Path: l.Path, Offset: host, What: fmt.Sprintf("a compressed cluster (%s) cannot be decompressed: %v", l.Header.Compression, err)}
}
