// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

const (
	mapMagic   = "imgbackup-map 1"
	dirMagic   = "imgbackup-dir 1"
	maxMapHead = 1024

	runLineLen   = 1 + 1 + 19 + 1 + 19 + 1 + 8 + 1 + 10 + 1 + 8 + 1 + 7 + 1 + hexLen + 1
	namedLineLen = 1 + 1 + 8 + 1 + 10 + 1 + hexLen + 1
	endLineLen   = 1 + 1 + 12 + 1 + 12 + 1 + 19 + 1 + 19 + 1
	dirLineLen   = 1 + 1 + 15 + 1 + 8 + 1 + 8 + 1 + 19 + 1 + 19 + 1 + 8 + 1 + hexLen + 1
	dirFooterLen = len(dirMagic) + 1 + 8 + 1 + 15 + 1 + 10 + 1 + hexLen + 1

	// frameLines is the number of lines in a frame of a map as it is written: a
	// merge of 65 maps holds one decoded frame of each.
	frameLines    = 4096
	maxFrameLines = 8192 // as it is read
	maxDirLength  = 64 << 20
	maxMapPacks   = 99_999_999
	maxMapLength  = 1 << 50
	maxDiskName   = 255
)

// run is an entry whose pack is a number in a list.
type run struct {
	off, len int64
	frameOff int64
	frameLen int32
	chunkOff int32
	pack     uint32
	zero     bool
	chunk    Digest
}

func (r *run) end() int64 { return r.off + r.len }

// continuedBy reports whether n continues r: zeros, or the next bytes of a chunk.
func (r *run) continuedBy(n *run) bool {
	if r.zero != n.zero || r.off+r.len != n.off {
		return false
	}
	return r.zero || int64(r.chunkOff)+r.len == int64(n.chunkOff) && r.frameOff == n.frameOff &&
		r.pack == n.pack && r.frameLen == n.frameLen && r.chunk == n.chunk
}

// valid reports whether r may stand in a map of a disk of size bytes with packs packs, whose
// frames have at most frameLimit bytes.
func (r *run) valid(size int64, packs int, frameLimit int32) bool {
	if r.off < 0 || r.len <= 0 || r.len > size || r.off > size-r.len {
		return false
	}
	return r.zero || int(r.pack) < packs && r.frameOff >= 0 && r.frameLen > 0 && r.frameLen <= frameLimit &&
		r.chunkOff >= 0 && r.len <= GridSize && int64(r.chunkOff)+r.len <= GridSize
}

// zeroFields stands in place of the fields that zeros do not have.
var zeroFields = fmt.Appendf(nil, "%8s %10s %8s %7s %*s\n", "-", "-", "-", "-", hexLen, "-")

const zeroFieldsAt = 2 + 19 + 1 + 19 + 1

func (r *run) put(line []byte) bool {
	l := lineWriter{line: line}
	if r.zero {
		l.word("z")
		l.dec(19, r.off)
		l.dec(19, r.len)
		line[zeroFieldsAt-1] = ' '
		copy(line[zeroFieldsAt:], zeroFields)
		return !l.bad
	}
	l.word("d")
	l.dec(19, r.off)
	l.dec(19, r.len)
	l.dec(8, int64(r.pack))
	l.dec(10, r.frameOff)
	l.dec(8, int64(r.frameLen))
	l.dec(7, int64(r.chunkOff))
	l.hex(&r.chunk)
	return l.end()
}

// parse reads a run line; it does not judge the numbers.
func (r *run) parse(line []byte) bool {
	l := lineReader{line: line[:runLineLen], pos: 1}
	r.off = l.dec(19)
	r.len = l.dec(19)
	switch line[0] {
	case 'z':
		r.zero = true
		return !l.bad && line[zeroFieldsAt-1] == ' ' && bytes.Equal(line[zeroFieldsAt:runLineLen], zeroFields)
	case 'd':
		r.zero = false
		r.pack = uint32(l.dec(8))
		r.frameOff = l.dec(10)
		r.frameLen = int32(l.dec(8))
		r.chunkOff = int32(l.dec(7))
		l.hex(&r.chunk)
		return l.end()
	}
	return false
}

// putNamed writes a line that gives a pack its number.
func putNamed(line []byte, number int, ref Ref) bool {
	l := lineWriter{line: line}
	l.word("p")
	l.dec(8, int64(number))
	l.dec(10, ref.Length)
	l.hex(&ref.Name)
	return l.end()
}

func parseNamed(line []byte, number int) (Ref, bool) {
	l := lineReader{line: line[:namedLineLen]}
	var ref Ref
	l.word("p")
	n := l.dec(8)
	ref.Length = l.dec(10)
	l.hex(&ref.Name)
	return ref, l.end() && n == int64(number) && ref.Length > 0 && ref.Length <= maxPackLength
}

// mapHead is the first frame of a map.
type mapHead struct {
	disk  string
	size  int64
	full  bool
	packs int64
}

func (h *mapHead) check() error {
	if len(h.disk) == 0 || len(h.disk) > maxDiskName {
		return errors.New("the disk's name is empty or too long")
	}
	for i := range len(h.disk) {
		if c := h.disk[i]; c <= ' ' || c > '~' {
			return fmt.Errorf("the disk's name has the byte %#02x", c)
		}
	}
	if h.size < 0 {
		return fmt.Errorf("disk size %d is negative", h.size)
	}
	return nil
}

func (h *mapHead) text() string {
	kind := "delta"
	if h.full {
		kind = "full"
	}
	return fmt.Sprintf("%s\ndisk %s\nsize %d\nkind %s\npacks %d\n", mapMagic, h.disk, h.size, kind, h.packs)
}

// parseMapHead reads the header; it is what text writes, byte by byte.
func parseMapHead(text string) (mapHead, error) {
	var h mapHead
	f := strings.Split(text, "\n")
	if len(f) != 6 || f[0] != mapMagic {
		return h, fmt.Errorf("the map does not begin with the header %q", mapMagic)
	}
	h.disk = strings.TrimPrefix(f[1], "disk ")
	h.full = f[3] == "kind full"
	var err1, err2 error
	h.size, err1 = strconv.ParseInt(strings.TrimPrefix(f[2], "size "), 10, 64)
	h.packs, err2 = strconv.ParseInt(strings.TrimPrefix(f[4], "packs "), 10, 64)
	if err := errors.Join(err1, err2, h.check()); err != nil {
		return h, fmt.Errorf("header of the map: %w", err)
	}
	if h.packs < 0 || h.packs > maxMapPacks || h.text() != text {
		return h, errors.New("the header of the map is not valid")
	}
	return h, nil
}

// mapCounts is the last line of a map.
type mapCounts struct{ dataRuns, zeroRuns, data, zero int64 }

func (c *mapCounts) add(r *run) {
	if r.zero {
		c.zeroRuns++
		c.zero += r.len
		return
	}
	c.dataRuns++
	c.data += r.len
}

func (c *mapCounts) put(line []byte) bool {
	l := lineWriter{line: line}
	l.word("e")
	l.dec(12, c.dataRuns)
	l.dec(12, c.zeroRuns)
	l.dec(19, c.data)
	l.dec(19, c.zero)
	return l.end()
}

func (c *mapCounts) parse(line []byte) bool {
	if len(line) != endLineLen {
		return false
	}
	l := lineReader{line: line}
	l.word("e")
	c.dataRuns = l.dec(12)
	c.zeroRuns = l.dec(12)
	c.data = l.dec(19)
	c.zero = l.dec(19)
	return l.end()
}
