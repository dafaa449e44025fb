// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"cmp"
	"context"
	"runtime"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

const (
	// readAtOnce is the part of a file that is read at once, at most, to get at tables in it.
	readAtOnce = 1 << 20
	// readOver is what is read along between two tables rather than asked for them twice.
	readOver = 32 << 10
	// surveyWorkers bounds how many read tables at once.
	surveyWorkers = 4
)

// located is a table of one cluster.
type located struct {
	offset int64 // in the file
	index  int   // whose it is
}

// clusterReader reads tables of one cluster, in large reads. It is one worker's.
type clusterReader struct {
	file *File
	size int64 // of a cluster
	buf  []byte
}

// each reads tables, which are sorted for that, and hands them out one by one.
func (r *clusterReader) each(tables []located, what string, use func(index int, table []byte)) error {
	slices.SortFunc(tables, func(a, b located) int { return cmp.Compare(a.offset, b.offset) })
	if r.buf == nil {
		r.buf = make([]byte, max(readAtOnce, r.size))
	}
	for len(tables) > 0 {
		start := tables[0].offset
		end, n := start+r.size, 1
		for n < len(tables) && tables[n].offset-end <= readOver && tables[n].offset+r.size-start <= int64(len(r.buf)) {
			end = max(end, tables[n].offset+r.size)
			n++
		}
		part := r.buf[:end-start]
		if err := r.file.readMeta(part, start, what); err != nil {
			return err
		}
		for _, t := range tables[:n] {
			use(t.index, part[t.offset-start:][:r.size])
		}
		tables = tables[n:]
	}
	return nil
}

// shared does parts 0 to count-1 of something on all cores. Each worker asks for a function of
// its own that does a part.
func shared(ctx context.Context, count int64, worker func() func(part int64) error) error {
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range min(int64(runtime.GOMAXPROCS(0)), surveyWorkers, count) {
		do := worker()
		g.Go(func() error {
			for {
				part := next.Add(1) - 1
				if part >= count {
					return nil
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := do(part); err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}
