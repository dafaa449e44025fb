// SPDX-License-Identifier: Apache-2.0

package push

import (
	"context"
	"iter"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/internal/outfile"
	"github.com/imgbackup/imgbackup/qcow2"
)

// chunkSize is the largest read, bytes, and what chunks are aligned to.
const chunkSize = 1 << 20

// piece is a range of the disk that goes into the target, as data or as zeros.
type piece struct {
	start, end int64
	zero       bool
}

// explicitZeros reports whether what the target leaves out means anything but
// zeros, and the target is new.
func (j *job) explicitZeros(src backup.OpenDisk) bool {
	return j.out.Creator != nil && src.Plan.Mode == backup.Incremental
}

// pieces yields what goes into the target, in ascending order. In an incremental
// qcow2 they are whole clusters: one that has data anywhere is all data.
func (j *job) pieces(ctx context.Context, src backup.OpenDisk) iter.Seq2[piece, error] {
	return func(yield func(piece, error) bool) {
		size, unit, what := src.Image.Size(), int64(1), src.Changes.Clip(src.Image.Size())
		if j.explicitZeros(src) {
			unit = j.out.Creator.ClusterSize()
			what = src.Changes.Round(unit, size)
		}
		for run, err := range what {
			if err != nil {
				yield(piece{}, err)
				return
			}
			pos := run.Start // up to here all has been yielded
			for e, err := range src.Image.Extents(run.Start, run.End) {
				if err == nil {
					err = ctx.Err()
				}
				if err != nil {
					yield(piece{}, err)
					return
				}
				if e.Kind == qcow2.Hole || e.Kind == qcow2.Zero {
					continue
				}
				start := max(pos, e.Offset-e.Offset%unit)
				end := e.Offset + e.Length
				end = min(run.End, end+(unit-end%unit)%unit)
				if pos < start && !yield(piece{pos, start, true}, nil) {
					return
				}
				if start < end && !yield(piece{start, end, false}, nil) {
					return
				}
				pos = max(pos, end)
			}
			if pos < run.End && !yield(piece{pos, run.End, true}, nil) {
				return
			}
		}
	}
}

// count reads the images' tables alone.
func (j *job) count(ctx context.Context, src backup.OpenDisk) (a outfile.Amounts, err error) {
	for p, err := range j.pieces(ctx, src) {
		if err != nil {
			return a, err
		}
		a.Add(p.end-p.start, p.zero)
	}
	return a, nil
}

// chunk is a part of the disk that a worker reads and writes.
type chunk struct {
	start, end int64
	runs       []qcow2.HostRun // where it goes
}

// write copies the disk into the target: workers read and write, while the
// pieces that come next are looked for and get their places.
func (j *job) write(ctx context.Context, src backup.OpenDisk, workers int, count func(int64)) error {
	g, gctx := errgroup.WithContext(ctx)
	work := make(chan chunk)
	for range workers {
		g.Go(func() error {
			buf := make([]byte, chunkSize)
			for c := range work {
				if err := j.copyChunk(gctx, src, c, buf); err != nil {
					return err
				}
				count(c.end - c.start)
			}
			return nil
		})
	}
	err := j.distribute(gctx, src, work)
	close(work)
	// A worker's error is the cause of the cancellation that the other sees.
	if werr := g.Wait(); werr != nil {
		err = werr
	}
	return err
}

// distribute gives every piece its place, and the data to the workers.
func (j *job) distribute(ctx context.Context, src backup.OpenDisk, work chan<- chunk) error {
	for p, err := range j.pieces(ctx, src) {
		if err != nil {
			return err
		}
		if p.zero {
			if err := j.zeros(ctx, src, p); err != nil {
				return err
			}
			continue
		}
		for start := p.start; start < p.end; {
			end := min(p.end, (start/chunkSize+1)*chunkSize)
			runs, err := j.out.At(start, end)
			if err != nil {
				return err
			}
			select {
			case work <- chunk{start, end, runs}:
			case <-ctx.Done():
				return ctx.Err()
			}
			start = end
		}
	}
	return nil
}

// zerosAtOnce is how many clusters are made zeros between looks at the context.
const zerosAtOnce = 64 << 10

func (j *job) zeros(ctx context.Context, src backup.OpenDisk, p piece) error {
	if !j.explicitZeros(src) {
		return j.out.Zero(ctx, p.start, p.end)
	}
	step := j.out.Creator.ClusterSize() * zerosAtOnce
	for start := p.start; start < p.end; start += step {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := j.out.Creator.Zero(start, min(p.end, start+step)); err != nil {
			return err
		}
	}
	return nil
}

func (j *job) copyChunk(ctx context.Context, src backup.OpenDisk, c chunk, buf []byte) error {
	buf = buf[:c.end-c.start]
	if err := src.Image.ReadAt(ctx, buf, c.start); err != nil {
		return err
	}
	for _, r := range c.runs {
		if err := j.out.Write(buf[r.Guest-c.start:][:r.Length], r.Host); err != nil {
			return err
		}
	}
	return nil
}
