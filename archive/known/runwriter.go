// SPDX-License-Identifier: Apache-2.0

package known

import (
	"bufio"
	"context"
	"encoding/binary"
	"hash/crc32"
	"io"
	"os"
	"slices"
)

// batch is what indexes say, until it is written as a run.
type batch struct {
	packs   []packEntry
	indexes []indexEntry
	records []record
}

// batchRecords bounds a batch: 24 MiB.
const batchRecords = 1 << 20

func (b *batch) beginIndex(name Digest) { b.indexes = append(b.indexes, indexEntry{name: name}) }

func (b *batch) add(pack Pack, frames []Frame) {
	last := len(b.indexes) - 1
	number := uint32(len(b.packs))
	b.packs = append(b.packs, packEntry{pack, uint32(last)})
	for i := range frames {
		f := &frames[i]
		b.records = append(b.records, record{keyOf(&f.Chunk), number, f.Offset, f.Length})
	}
	b.indexes[last].records += uint64(len(frames))
}

// write writes a batch as a run.
func (b *batch) write(f *os.File) error {
	slices.SortFunc(b.records, func(x, y record) int {
		switch {
		case x.key < y.key:
			return -1
		case x.key > y.key:
			return 1
		}
		return 0
	})
	each := func(yield func(packEntry) error) error {
		for _, p := range b.packs {
			if err := yield(p); err != nil {
				return err
			}
		}
		return nil
	}
	return writeRun(f, b.indexes, each, func(w *sortedWriter) error {
		var buf [tableKey + placeLen]byte
		for i := range b.records {
			b.records[i].put(buf[:])
			if err := w.add(buf[:]); err != nil {
				return err
			}
		}
		return w.w.Flush()
	})
}

// mergeRuns writes what is listed of some runs as one.
func mergeRuns(ctx context.Context, f *os.File, runs []*run) error {
	var indexes []indexEntry
	var from []*source
	renumbered := make([][]uint32, len(runs)) // packs; 0 is none
	numbers := make([][]uint32, len(runs))    // indexes
	var packs uint32
	for i, r := range runs {
		numbers[i] = make([]uint32, len(r.indexes))
		for j, e := range r.indexes {
			numbers[i][j] = uint32(len(indexes))
			if r.live[j] {
				indexes = append(indexes, e)
			}
		}
		renumbered[i] = make([]uint32, 0, r.packs)
		err := r.eachPack(func(p packEntry, ok bool) error {
			if !ok || !r.live[p.index] {
				renumbered[i] = append(renumbered[i], 0)
				return nil
			}
			packs++
			renumbered[i] = append(renumbered[i], packs)
			return nil
		})
		if err != nil {
			return err
		}
		from = append(from, &source{in: r.reader(), pack: func(n uint32) (uint32, bool) {
			if n >= r.packs || renumbered[i][n] == 0 {
				return 0, false
			}
			return renumbered[i][n] - 1, true
		}})
	}
	each := func(yield func(packEntry) error) error {
		for i, r := range runs {
			err := r.eachPack(func(p packEntry, ok bool) error {
				if !ok || !r.live[p.index] {
					return nil
				}
				p.index = numbers[i][p.index]
				return yield(p)
			})
			if err != nil {
				return err
			}
		}
		return nil
	}
	return writeRun(f, indexes, each, func(w *sortedWriter) error { return merge(ctx, from, w) })
}

// writeRun writes a run into an empty file, and syncs it.
func writeRun(f *os.File, indexes []indexEntry, packs func(func(packEntry) error) error, records func(*sortedWriter) error) error {
	if _, err := f.Seek(int64(headLen), io.SeekStart); err != nil { // the head comes last
		return err
	}
	count, err := writePacks(f, packs)
	if err != nil {
		return err
	}
	list := make([]byte, len(indexes)*indexLen)
	for i, e := range indexes {
		copy(list[i*indexLen:], e.name[:])
		binary.LittleEndian.PutUint64(list[i*indexLen+32:], e.records)
	}
	if _, err := f.Write(list); err != nil {
		return err
	}
	w := newSortedWriter(f, tableKey)
	if err := records(w); err != nil {
		return err
	}
	head := make([]byte, headLen)
	n := head[copy(head, runMagic):]
	binary.LittleEndian.PutUint32(n, count)
	binary.LittleEndian.PutUint32(n[4:], uint32(len(indexes)))
	binary.LittleEndian.PutUint64(n[8:], uint64(w.count))
	end := make([]byte, 8*len(w.fences), 8*len(w.fences)+4)
	for i, fence := range w.fences {
		binary.LittleEndian.PutUint64(end[8*i:], fence)
	}
	sum := crc32.New(castagnoli)
	for _, part := range [][]byte{head, list, end} {
		sum.Write(part)
	}
	if _, err := f.Write(binary.LittleEndian.AppendUint32(end, sum.Sum32())); err != nil {
		return err
	}
	if _, err := f.WriteAt(head, 0); err != nil {
		return err
	}
	return f.Sync()
}

func writePacks(f *os.File, packs func(func(packEntry) error) error) (count uint32, err error) {
	w := bufio.NewWriterSize(f, 64<<10)
	err = packs(func(p packEntry) error {
		var b [packLen]byte
		p.put(b[:])
		count++
		_, err := w.Write(b[:])
		return err
	})
	if err != nil {
		return 0, err
	}
	return count, w.Flush()
}
