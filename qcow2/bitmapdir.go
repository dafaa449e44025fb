// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// What QEMU's docs/interop/qcow2.rst and block/qcow2-bitmap.c say of bitmaps.
const (
	bitmapsExtension uint32 = 0x23852875
)

// Limits of QEMU's.
const (
	bitmapsExtensionSize = 24

	maxBitmaps         = 65535
	maxBitmapDirectory = maxBitmaps * 1024
	maxBitmapName      = 1023
	maxBitmapTable     = 0x8000000  // entries
	maxBitmapData      = 0x20000000 // bytes
	minGranularityBits = 9
	maxGranularityBits = 31
	bitmapEntryHead    = 24
	bitmapTypeDirty    = 1
	bitmapInUse        = 1 << 0
	bitmapAuto         = 1 << 1
	bitmapExtraCompat  = 1 << 2
	bitmapFlagsKnown   = bitmapInUse | bitmapAuto | bitmapExtraCompat

	// maxTablesRead bounds what is read to open an image: the tables of all its bitmaps, in bytes.
	// 128 bitmaps of the largest kind in an image with the smallest clusters reach it.
	maxTablesRead = 1 << 30
)

// bitmapDirectory is the content of the bitmaps extension.
type bitmapDirectory struct {
	count  int64 // of bitmaps
	offset int64
	size   int64 // bytes
}

// parseBitmapsExtension bounds every number of the extension.
func parseBitmapsExtension(s *bitmapSource) (d bitmapDirectory, err error) {
	if len(s.extension) != bitmapsExtensionSize {
		return d, s.damage(0, fmt.Sprintf("the bitmaps extension has %d bytes, it must have %d", len(s.extension), bitmapsExtensionSize))
	}
	count := binary.BigEndian.Uint32(s.extension)
	reserved := binary.BigEndian.Uint32(s.extension[4:])
	size := binary.BigEndian.Uint64(s.extension[8:])
	offset := binary.BigEndian.Uint64(s.extension[16:])
	switch {
	case count < 1 || count > maxBitmaps:
		return d, s.damage(0, fmt.Sprintf("the bitmaps extension names %d bitmaps, 1 to %d are possible", count, maxBitmaps))
	case reserved != 0:
		return d, s.damage(0, "a reserved field of the bitmaps extension is not 0")
	case size < 1 || size > maxBitmapDirectory:
		return d, s.damage(0, fmt.Sprintf("the bitmap directory has %d bytes, 1 to %d are possible", size, maxBitmapDirectory))
	case offset%uint64(s.clusterSize) != 0 || offset == 0:
		return d, s.damage(0, fmt.Sprintf("the bitmap directory's offset %d is no cluster's", offset))
	case !s.holds(offset, size):
		return d, s.damage(0, fmt.Sprintf("the bitmap directory at %d lies beyond the end of the file", offset))
	}
	return bitmapDirectory{count: int64(count), offset: int64(offset), size: int64(size)}, nil
}

// holds reports whether the file has the bytes.
func (s *bitmapSource) holds(offset, length uint64) bool {
	return offset <= uint64(s.fileSize) && length <= uint64(s.fileSize)-offset
}

// readBitmaps reads the bitmap directory, and the tables of the bitmaps that are not in use. err
// tells why no bitmap of the image is usable (Layer.BitmapsErr); it never means that the image
// itself is unreadable. No bitmaps and no error: the image has none.
func readBitmaps(s bitmapSource) ([]*Bitmap, error) {
	armed := s.version >= 3 && s.autoclear&AutoclearBitmaps != 0
	switch {
	case !s.hasExt && !armed:
		return nil, nil
	case !s.hasExt:
		return nil, s.damage(0, "the header says that there are bitmaps, but has no bitmaps extension")
	case s.version < 3:
		return nil, fmt.Errorf("%s: %w: the image was changed to version 2, which has none", s.path, ErrBitmapsDead)
	case !armed:
		return nil, fmt.Errorf("%s: %w: a program without support for bitmaps wrote to the image (autoclear bit 0 is clear)", s.path, ErrBitmapsDead)
	}
	d, err := parseBitmapsExtension(&s)
	if err != nil {
		return nil, err
	}
	bitmaps, err := readBitmapDirectory(&s, d)
	if err != nil {
		return nil, err
	}
	if err := checkBitmapOverlap(&s, d, bitmaps); err != nil {
		return nil, err
	}
	budget := int64(maxTablesRead)
	for _, b := range bitmaps {
		if b.Problem != nil {
			continue
		}
		if budget -= b.tableEntries * 8; budget < 0 {
			b.Problem = fmt.Errorf("bitmap %s: the tables of the image's bitmaps have more than %d bytes", quote(b.Name), maxTablesRead)
			continue
		}
		b.Problem = b.scanTable()
	}
	return bitmaps, nil
}

// readBitmapDirectory reads the entries. What is wrong within one of them is that bitmap's Problem.
func readBitmapDirectory(s *bitmapSource, d bitmapDirectory) ([]*Bitmap, error) {
	r := bufio.NewReaderSize(io.NewSectionReader(s.file, d.offset, d.size), 1<<16)
	var bitmaps []*Bitmap
	names := make(map[string]bool)
	for pos := int64(0); pos < d.size; {
		at := d.offset + pos
		if int64(len(bitmaps)) == d.count {
			return nil, s.damage(at, fmt.Sprintf("the bitmap directory goes on behind its %d entries", d.count))
		}
		b, length, err := readBitmapEntry(s, r, at, d.size-pos)
		if err != nil {
			return nil, err
		}
		if names[b.Name] {
			return nil, s.damage(at, fmt.Sprintf("two bitmaps have the name %s", quote(b.Name)))
		}
		names[b.Name] = true
		bitmaps = append(bitmaps, b)
		pos += length
	}
	if int64(len(bitmaps)) != d.count {
		return nil, s.damage(d.offset, fmt.Sprintf("the bitmap directory has %d entries, the header says %d", len(bitmaps), d.count))
	}
	return bitmaps, nil
}

// readBitmapEntry reads the entry at offset at, of which the directory has rest bytes, and gives
// its length there.
func readBitmapEntry(s *bitmapSource, r *bufio.Reader, at, rest int64) (*Bitmap, int64, error) {
	if rest < bitmapEntryHead {
		return nil, 0, s.damage(at, "an entry passes the end of the bitmap directory")
	}
	var head [bitmapEntryHead]byte
	if err := s.readDirectory(r, head[:], at); err != nil {
		return nil, 0, err
	}
	be := binary.BigEndian
	e := bitmapEntry{
		tableOffset:     be.Uint64(head[0:]),
		tableEntries:    be.Uint32(head[8:]),
		flags:           be.Uint32(head[12:]),
		kind:            head[16],
		granularityBits: head[17],
		extraSize:       be.Uint32(head[20:]),
	}
	nameSize := int64(be.Uint16(head[18:]))
	if nameSize < 1 || nameSize > maxBitmapName {
		return nil, 0, s.damage(at, fmt.Sprintf("a bitmap's name has %d bytes, 1 to %d are possible", nameSize, maxBitmapName))
	}
	length := (bitmapEntryHead + int64(e.extraSize) + nameSize + 7) &^ 7
	if length > rest {
		return nil, 0, s.damage(at, "an entry passes the end of the bitmap directory")
	}
	if _, err := r.Discard(int(e.extraSize)); err != nil {
		return nil, 0, s.readFailed(at, err)
	}
	name := make([]byte, nameSize)
	if err := s.readDirectory(r, name, at); err != nil {
		return nil, 0, err
	}
	if _, err := r.Discard(int(length - bitmapEntryHead - int64(e.extraSize) - nameSize)); err != nil {
		return nil, 0, s.readFailed(at, err)
	}
	return e.bitmap(s, string(name), at), length, nil
}

func (s *bitmapSource) readDirectory(r io.Reader, p []byte, at int64) error {
	if _, err := io.ReadFull(r, p); err != nil {
		return s.readFailed(at, err)
	}
	return nil
}

// readFailed tells a file that has become shorter from one that cannot be read.
func (s *bitmapSource) readFailed(at int64, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return s.damage(at, "bitmap metadata lies beyond the end of the file")
	}
	return fmt.Errorf("%s: reading bitmap metadata at %d: %w", s.path, at, err)
}

// bitmapEntry is the fixed part of a directory entry.
type bitmapEntry struct {
	tableOffset     uint64
	tableEntries    uint32
	flags           uint32
	kind            uint8
	granularityBits uint8
	extraSize       uint32
}

// bitmap checks the entry, which begins at offset at of the file.
func (e *bitmapEntry) bitmap(s *bitmapSource, name string, at int64) *Bitmap {
	b := &Bitmap{
		Name:    name,
		Enabled: e.flags&bitmapAuto != 0,
		InUse:   e.flags&bitmapInUse != 0,
		src:     *s,
	}
	if e.granularityBits >= minGranularityBits && e.granularityBits <= maxGranularityBits {
		b.Granularity = 1 << e.granularityBits
	}
	if e.extraSize != 0 || e.flags&bitmapExtraCompat != 0 {
		b.refused = "it has extra data"
	}
	if what := e.wrong(s, b); what != "" {
		b.Problem = s.damage(at, fmt.Sprintf("bitmap %s: %s", quote(name), what))
		return b
	}
	b.tableOffset, b.tableEntries = int64(e.tableOffset), int64(e.tableEntries)
	if b.InUse {
		b.Problem = fmt.Errorf("bitmap %s: %w", quote(name), ErrBitmapInUse)
		return b
	}
	if what := e.wrongTable(s, b); what != "" {
		b.Problem = s.damage(at, fmt.Sprintf("bitmap %s: %s", quote(name), what))
	}
	return b
}

// wrong says what no entry may have; "" is nothing.
func (e *bitmapEntry) wrong(s *bitmapSource, b *Bitmap) string {
	switch {
	case e.kind != bitmapTypeDirty:
		return fmt.Sprintf("its type is %d, only %d is known", e.kind, bitmapTypeDirty)
	case b.Granularity == 0:
		return fmt.Sprintf("its granularity is 2^%d bytes, 2^%d to 2^%d are possible", e.granularityBits, minGranularityBits, maxGranularityBits)
	case e.flags&^bitmapFlagsKnown != 0:
		return fmt.Sprintf("it has unknown flags %#x", e.flags&^bitmapFlagsKnown)
	case e.extraSize != 0 && e.flags&bitmapExtraCompat == 0:
		return "it has extra data that a program must know to use it"
	case strings.IndexByte(b.Name, 0) >= 0:
		return "its name has a zero byte: QEMU knows it by a shorter name"
	case e.tableOffset == 0 || e.tableOffset%uint64(s.clusterSize) != 0:
		return fmt.Sprintf("its table's offset %d is no cluster's", e.tableOffset)
	case e.tableEntries == 0 || e.tableEntries > maxBitmapTable:
		return fmt.Sprintf("its table has %d entries, 1 to %d are possible", e.tableEntries, maxBitmapTable)
	case int64(e.tableEntries) > maxBitmapData/s.clusterSize:
		return fmt.Sprintf("its table has %d entries: more than %d bytes of bits", e.tableEntries, maxBitmapData)
	}
	return ""
}

// wrongTable says what is wrong with the table of a bitmap that is not in use; "" is nothing.
func (e *bitmapEntry) wrongTable(s *bitmapSource, b *Bitmap) string {
	want := bitmapTableEntries(s.size, b.Granularity, s.clusterSize)
	switch {
	case int64(e.tableEntries) != want:
		return fmt.Sprintf("its table has %d entries, the disk's size needs %d", e.tableEntries, want)
	case !s.holds(e.tableOffset, uint64(e.tableEntries)*8):
		return "its table lies beyond the end of the file"
	}
	return ""
}

// bitmapTableEntries is the number of clusters of bits that a bitmap of a disk has. size is 0 or
// more, the others are more.
func bitmapTableEntries(size, granularity, clusterSize int64) int64 {
	bits := ceilDiv(size, granularity)
	return ceilDiv(ceilDiv(bits, 8), clusterSize)
}

func ceilDiv(a, b int64) int64 {
	if a == 0 {
		return 0
	}
	return (a-1)/b + 1
}

// checkBitmapOverlap refuses tables and directories that lie in one another or in the header: with
// such metadata nothing can be believed. It also bounds the tables by the file's size. Bitmaps with
// a Problem do not take part.
func checkBitmapOverlap(s *bitmapSource, d bitmapDirectory, bitmaps []*Bitmap) error {
	type span struct {
		start, end int64
		what       string
	}
	spans := []span{{0, s.clusterSize, "the header"}, {d.offset, d.offset + d.size, "the bitmap directory"}}
	for _, b := range bitmaps {
		if b.Problem == nil {
			spans = append(spans, span{b.tableOffset, b.tableOffset + b.tableEntries*8, "the table of bitmap " + quote(b.Name)})
		}
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.start, b.start) })
	for i := 1; i < len(spans); i++ {
		if spans[i].start < spans[i-1].end {
			return s.damage(spans[i].start, fmt.Sprintf("%s lies in %s", spans[i].what, spans[i-1].what))
		}
	}
	return nil
}
