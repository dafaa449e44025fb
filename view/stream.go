// SPDX-License-Identifier: Apache-2.0

package view

import (
	"context"
	"fmt"
	"io"
	"sync"
)

// streamsAhead is the number of segments that are read while one is written.
const streamsAhead = 3

// Stream writes the whole disk to w, in order and zeros as well. tell, which may be
// nil, is told how many bytes are done. An error leaves w with a part of the disk.
func (d *Disk) Stream(ctx context.Context, w io.Writer, tell func(done int64)) error {
	ctx, cancel := context.WithCancel(ctx)
	var readers sync.WaitGroup
	defer readers.Wait()
	defer cancel()
	type part struct {
		buf  []byte
		read chan error
	}
	begin := func(p *part, off int64) {
		p.buf = p.buf[:min(segmentSize, d.size-off)]
		readers.Go(func() { p.read <- d.ReadAt(ctx, p.buf, off) })
	}
	var parts []*part
	next := int64(0)
	for ; next < d.size && len(parts) <= streamsAhead; next += segmentSize {
		p := &part{buf: make([]byte, segmentSize), read: make(chan error, 1)}
		begin(p, next)
		parts = append(parts, p)
	}
	for done := int64(0); done < d.size; {
		p := parts[0]
		if err := <-p.read; err != nil {
			return fmt.Errorf("disk %s, bytes %d to %d: %w", d.Name, done, done+int64(len(p.buf))-1, err)
		}
		if _, err := w.Write(p.buf); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		done += int64(len(p.buf))
		if tell != nil {
			tell(done)
		}
		parts = parts[1:]
		if next < d.size {
			begin(p, next)
			parts = append(parts, p)
			next += segmentSize
		}
	}
	return nil
}
