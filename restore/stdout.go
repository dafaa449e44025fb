// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"context"
	"io"
	"sync"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/outfile"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
)

// Stdout is the path of the one target that is not a place: the disk is written to
// [Options.Stdout], raw, in order, zeros as well. Whoever reads it learns from the exit
// status alone whether it is whole.
const Stdout = "-"

// checkStdout refuses what cannot be had of a stream.
func (o *Options) checkStdout(t Target, targets int) error {
	switch {
	case targets > 1 || len(o.Files) > 0:
		return usage.Errorf("one disk at a time goes to stdout")
	case t.Format != qcow2.Raw:
		return usage.Errorf("only raw can be written in order, to stdout")
	case o.Continue || o.Verify || o.Force:
		return usage.Errorf("to stdout there is no --continue, --verify or --force")
	case o.Stdout == nil:
		return usage.Errorf("there is no stdout")
	}
	return nil
}

// stream writes a disk in order.
type stream struct {
	archivedDisk
	o *Options
}

// The unit in which a stream is read, bytes, and how many of them are read while one is
// written.
const (
	segmentSize  = 4 << 20
	streamsAhead = 3
)

// segment is a part of the disk that is being read.
type segment struct {
	buf  []byte
	read chan error
}

// prove is [writer]'s. Whoever reads a stream waits for its first byte, and sees what is
// damaged by the exit status in any case: the maps are proven as they are read, and
// nobody is told how much of it is data.
func (s *stream) prove(ctx context.Context) (outfile.Amounts, error) {
	return outfile.Amounts{Zero: s.entry.Size}, s.open(ctx)
}

func (s *stream) write(ctx context.Context, _ *job, p *progress) error {
	return copyInOrder(ctx, &limited{Disk: s.disk, limit: s.o.Limit}, s.o.Stdout, p.add)
}

// verify is [writer]'s: nothing of a stream can be read again.
func (*stream) verify(context.Context, *job, *progress) error { return nil }

// copyInOrder writes all of a disk to w. tell is told of every part that was written.
func copyInOrder(ctx context.Context, d *limited, w io.Writer, tell func(n int64)) error {
	ctx, cancel := context.WithCancel(ctx)
	var readers sync.WaitGroup
	defer readers.Wait()
	defer cancel()
	begin := func(p *segment, off int64) {
		p.buf = p.buf[:min(segmentSize, d.Size()-off)]
		readers.Go(func() { p.read <- d.ReadAt(ctx, p.buf, off) })
	}
	var ahead []*segment
	next := int64(0)
	for ; next < d.Size() && len(ahead) <= streamsAhead; next += segmentSize {
		p := &segment{buf: make([]byte, segmentSize), read: make(chan error, 1)}
		begin(p, next)
		ahead = append(ahead, p)
	}
	for len(ahead) > 0 {
		p := ahead[0]
		ahead = ahead[1:]
		if err := <-p.read; err != nil {
			return err
		}
		if _, err := w.Write(p.buf); err != nil {
			return &chain.DiskError{Disk: d.Name, Err: err}
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		tell(int64(len(p.buf)))
		if next < d.Size() {
			begin(p, next)
			ahead = append(ahead, p)
			next += segmentSize
		}
	}
	return nil
}
