// SPDX-License-Identifier: Apache-2.0

package bitmapstore

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"sort"

	"github.com/imgbackup/imgbackup/internal/spool"
)

// Index is a set that can be read from any place on at little cost. It takes up a
// few MiB of memory at most; what does not fit lies in a temporary file. It may be
// read from several goroutines at once.
type Index struct {
	data   spool.Spool
	places []place
	bytes  int64
}

// place says where the block begins whose first run starts at start. What lies
// between two places are whole blocks.
type place struct{ start, at int64 }

const (
	indexBlock  = 512     // runs in a block
	indexPlaces = 1 << 17 // at most: then every second one is forgotten
	indexBuffer = 8 << 10 // bytes that are read at once
)

// NewIndex reads the whole set once. tempDir is where its temporary file would lie;
// empty: [spool.TempDir]. The index must be closed.
func NewIndex(ctx context.Context, r Runs, tempDir string) (*Index, error) {
	return newIndex(ctx, r, tempDir, indexPlaces)
}

func newIndex(ctx context.Context, r Runs, tempDir string, maxPlaces int) (*Index, error) {
	x := &Index{data: spool.Spool{Dir: tempDir}}
	b := indexBuilder{x: x, every: 1, places: maxPlaces}
	for run, err := range r.seq() {
		if err == nil {
			err = b.add(ctx, run)
		}
		if err != nil {
			x.Close()
			return nil, err
		}
	}
	err := b.flush()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		x.Close()
		return nil, err
	}
	return x, nil
}

// Close gives the index's memory and file back.
func (x *Index) Close() { x.data.Close() }

// Bytes is the number of bytes in the set.
func (x *Index) Bytes() int64 { return x.bytes }

// From is the part of the set from the run on that holds the byte at start, or
// else follows it.
func (x *Index) From(start int64) Runs {
	return func(yield func(Run, error) bool) {
		i := sort.Search(len(x.places), func(i int) bool { return x.places[i].start > start })
		if i--; i < 0 {
			i = 0
		}
		if len(x.places) == 0 {
			return
		}
		at := x.places[i].at
		in := bufio.NewReaderSize(io.NewSectionReader(&x.data, at, x.data.Size()-at), indexBuffer)
		for {
			more, err := readBlock(in, func(r Run) bool { return r.End <= start || yield(r, nil) })
			if err != nil {
				yield(Run{}, fmt.Errorf("read an index of changes: %w", err))
			}
			if err != nil || !more {
				return
			}
		}
	}
}

// A block is numbers: how many runs follow, how many low bits all its offsets have
// clear and thus leave out, the offset where it begins, and for each run what lies
// between it and the one before, and its length.
//
// readBlock gives the runs of the next block to use. It reports whether use wants
// more, and there may be more.
func readBlock(in *bufio.Reader, use func(Run) bool) (more bool, err error) {
	n, err := binary.ReadUvarint(in)
	if errors.Is(err, io.EOF) {
		return false, nil
	}
	var shift, pos uint64
	for _, v := range []*uint64{&shift, &pos} {
		if err == nil {
			*v, err = binary.ReadUvarint(in)
		}
	}
	for ; n > 0 && err == nil; n-- {
		var gap, length uint64
		if gap, err = binary.ReadUvarint(in); err == nil {
			length, err = binary.ReadUvarint(in)
		}
		if err != nil {
			break
		}
		start := pos + gap
		pos = start + length
		if !use(Run{int64(start << shift), int64(pos << shift)}) {
			return false, nil
		}
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err == nil, err
}

type indexBuilder struct {
	x      *Index
	places int   // at most, even
	runs   []Run // of the next block
	every  int   // so many blocks have one place
	count  int   // of blocks since the last place
	buf    []byte
}

func (b *indexBuilder) add(ctx context.Context, r Run) error {
	b.x.bytes += r.Len()
	b.runs = append(b.runs, r)
	if len(b.runs) < indexBlock {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return b.flush()
}

func (b *indexBuilder) flush() error {
	if len(b.runs) == 0 {
		return nil
	}
	if b.count%b.every == 0 {
		if len(b.x.places) == b.places {
			b.thin()
		}
		b.x.places = append(b.x.places, place{b.runs[0].Start, b.x.data.Size()})
		b.count = 0
	}
	b.count++
	var all uint64
	for _, r := range b.runs {
		all |= uint64(r.Start) | uint64(r.End)
	}
	shift := bits.TrailingZeros64(all)
	pos := b.runs[0].Start >> shift
	b.buf = binary.AppendUvarint(b.buf[:0], uint64(len(b.runs)))
	b.buf = binary.AppendUvarint(b.buf, uint64(shift))
	b.buf = binary.AppendUvarint(b.buf, uint64(pos))
	for _, r := range b.runs {
		b.buf = binary.AppendUvarint(b.buf, uint64(r.Start>>shift-pos))
		b.buf = binary.AppendUvarint(b.buf, uint64(r.Len()>>shift))
		pos = r.End >> shift
	}
	b.runs = b.runs[:0]
	_, err := b.x.data.Write(b.buf)
	return err
}

// thin forgets every second place.
func (b *indexBuilder) thin() {
	i := -1
	b.x.places = slices.DeleteFunc(b.x.places, func(place) bool {
		i++
		return i%2 == 1
	})
	b.every *= 2
}
