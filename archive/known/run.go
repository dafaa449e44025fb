// SPDX-License-Identifier: Apache-2.0

package known

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os"
)

// A run of a table is a file:
//
//	head      magic{16} packs{4} indexes{4} records{8}
//	packs     SHA-256{32} length{8} number of its index{4} CRC-32C of these{4}
//	indexes   SHA-256{32} number of its records{8}
//	records   sorted
//	fences    8 bytes of the first digest of each block
//	CRC-32C of head, indexes and fences{4}
//
// Numbers are little endian. Packs follow one another in the order of their indexes.
const (
	runMagic = "imgbackup-known1"
	headLen  = len(runMagic) + 4 + 4 + 8
	packLen  = 32 + 8 + 4 + 4
	indexLen = 32 + 8

	maxIndexes = 1 << 20
	maxPacks   = 1 << 28
	maxRecords = 1 << 31
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errRun = errors.New("it is no run of a table of chunks")

type indexEntry struct {
	name    Digest
	records uint64
}

type packEntry struct {
	Pack
	index uint32
}

func (p *packEntry) put(b []byte) {
	copy(b, p.Name[:])
	binary.LittleEndian.PutUint64(b[32:], uint64(p.Length))
	binary.LittleEndian.PutUint32(b[40:], p.index)
	binary.LittleEndian.PutUint32(b[44:], crc32.Checksum(b[:44], castagnoli))
}

func (p *packEntry) parse(b []byte) bool {
	copy(p.Name[:], b)
	p.Length = int64(binary.LittleEndian.Uint64(b[32:]))
	p.index = binary.LittleEndian.Uint32(b[40:])
	return binary.LittleEndian.Uint32(b[44:]) == crc32.Checksum(b[:44], castagnoli)
}

// run is an open run.
type run struct {
	file    *os.File
	name    string
	length  int64 // of the file
	packs   uint32
	indexes []indexEntry
	live    []bool // by the number of the index: it is listed
	sorted
}

// openRun opens and checks a run, but for its records.
func openRun(path, name string) (_ *run, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close() // only read
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	head := make([]byte, headLen)
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, err
	}
	n := head[len(runMagic):]
	indexes, records := binary.LittleEndian.Uint32(n[4:]), binary.LittleEndian.Uint64(n[8:])
	r := &run{file: f, name: name, length: info.Size(), packs: binary.LittleEndian.Uint32(n)}
	if string(head[:len(runMagic)]) != runMagic || r.packs > maxPacks || indexes > maxIndexes || records > maxRecords {
		return nil, errRun
	}
	r.sorted = sorted{in: f, key: tableKey, count: int64(records)}
	fences := blocks(r.count, r.perBlock())
	at := int64(headLen) + int64(r.packs)*int64(packLen)
	r.offset = at + int64(indexes)*int64(indexLen)
	if r.length != r.offset+r.bytes()+8*fences+4 {
		return nil, errRun
	}
	if err := r.readEnds(head, at, int(indexes), int(fences)); err != nil {
		return nil, err
	}
	return r, r.load()
}

// readEnds reads the indexes and the fences, and proves them.
func (r *run) readEnds(head []byte, at int64, indexes, fences int) error {
	sum := crc32.New(castagnoli)
	sum.Write(head)
	b := make([]byte, indexes*indexLen)
	if _, err := r.file.ReadAt(b, at); err != nil {
		return err
	}
	sum.Write(b)
	r.indexes, r.live = make([]indexEntry, indexes), make([]bool, indexes)
	for i := range r.indexes {
		e := b[i*indexLen:]
		copy(r.indexes[i].name[:], e)
		r.indexes[i].records = binary.LittleEndian.Uint64(e[32:])
	}
	b = make([]byte, 8*fences+4)
	if _, err := r.file.ReadAt(b, r.length-int64(len(b))); err != nil {
		return err
	}
	sum.Write(b[:8*fences])
	if sum.Sum32() != binary.LittleEndian.Uint32(b[8*fences:]) {
		return errRun
	}
	r.fences = make([]uint64, fences)
	for i := range r.fences {
		r.fences[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return nil
}

// pack reads what a pack is called; false: it can't be.
func (r *run) pack(number uint32) (p packEntry, ok bool) {
	if number >= r.packs {
		return p, false
	}
	var b [packLen]byte
	if _, err := r.file.ReadAt(b[:], int64(headLen)+int64(number)*int64(packLen)); err != nil {
		return p, false
	}
	return p, p.parse(b[:]) && int(p.index) < len(r.indexes)
}

// eachPack calls fn with all packs in their order.
func (r *run) eachPack(fn func(p packEntry, ok bool) error) error {
	in := io.NewSectionReader(r.file, int64(headLen), int64(r.packs)*int64(packLen))
	buf := make([]byte, 1024*packLen)
	for left := int64(r.packs); left > 0; {
		b := buf[:min(left, 1024)*int64(packLen)]
		if _, err := io.ReadFull(in, b); err != nil {
			return err
		}
		for ; len(b) > 0; b = b[packLen:] {
			var p packEntry
			ok := p.parse(b) && int(p.index) < len(r.indexes)
			if err := fn(p, ok); err != nil {
				return err
			}
			left--
		}
	}
	return nil
}

// dead is how many of the records no listed index has.
func (r *run) dead() (n int64) {
	for i, e := range r.indexes {
		if !r.live[i] {
			n += int64(e.records)
		}
	}
	return n
}

// close closes the file.
func (r *run) close() { _ = r.file.Close() } // only read
