// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/objstore"
)

// The table of an encrypted pack is an age file to the metadata key, the last in the pack.
// Its content is a zstd file of lines: a header, and then for each group of the pack a
// line "g", and for each of its chunks a line "c". Indexes have the same lines.

const (
	keyedPackMagic = "imgbackup-keyed-pack 1"
	keyedHeadLen   = len(keyedPackMagic) + 1 + 8 + 1 + 8 + 1
	groupDirLen    = 1 + 1 + 10 + 1 + 8 + 1 + 8 + 1 + hexLen + 1
	keyedChunkLen  = 1 + 1 + 8 + 1 + 7 + 1 + hexLen + 1 // and its parts
	partHexLen     = 2 * len(crypt.Part{})
	// maxKeyedTable bounds the text of a table, bytes.
	maxKeyedTable = 8 << 20
)

func partCount(length int32) int { return (int(length) + crypt.PartSize - 1) / crypt.PartSize }

func keyedLineLen(length int32) int { return keyedChunkLen + 1 + partCount(length)*partHexLen }

// appendGroupLines appends the lines of chunks, a line for each new group among them. It
// reports false where a number does not fit.
func appendGroupLines(dst []byte, chunks []PackChunk) ([]byte, bool) {
	ok, last := true, int64(-1)
	for i := range chunks {
		c := &chunks[i]
		if c.Keyed == nil {
			return dst, false
		}
		if c.FrameOffset != last {
			last = c.FrameOffset
			dst = append(dst, make([]byte, groupDirLen)...)
			l := lineWriter{line: dst[len(dst)-groupDirLen:]}
			l.word("g")
			l.dec(10, c.FrameOffset)
			l.dec(8, int64(c.FrameLength))
			l.dec(8, int64(c.Keyed.Generation))
			l.hex(&c.Keyed.Group)
			ok = l.end() && ok
		}
		n := keyedLineLen(c.Length)
		dst = append(dst, make([]byte, n)...)
		l := lineWriter{line: dst[len(dst)-n:]}
		l.word("c")
		l.dec(8, int64(c.Keyed.Frame))
		l.dec(7, int64(c.Length))
		l.hex(&c.Chunk)
		l.gap()
		for _, p := range c.Keyed.Parts {
			l.pos += hex.Encode(l.line[l.pos:], p[:])
		}
		ok = l.end() && ok
	}
	return dst, ok
}

var errKeyedLine = errors.New("a line of a group or a chunk is not valid")

// groupLines reads such lines.
type groupLines struct {
	group PackChunk // what its chunks have in common
	keyed KeyedChunk
	room  int64 // of the group, that may be frames
	end   int64 // of the group, in the pack
}

// next reads the first line of text. It returns its length, and the chunk if it is that of one.
func (g *groupLines) next(text []byte) (n int, c *PackChunk, err error) {
	if text[0] == 'g' {
		if len(text) < groupDirLen {
			return 0, nil, errKeyedLine
		}
		return groupDirLen, nil, g.begin(text[:groupDirLen])
	}
	if text[0] != 'c' || len(text) < keyedChunkLen || g.end == 0 {
		return 0, nil, errKeyedLine
	}
	c = &PackChunk{FrameOffset: g.group.FrameOffset, FrameLength: g.group.FrameLength}
	k := g.keyed
	l := lineReader{line: text[:keyedChunkLen]}
	l.word("c")
	k.Frame = int32(l.dec(8))
	c.Length = int32(l.dec(7))
	l.hex(&c.Chunk)
	if l.bad || k.Frame <= 0 || k.Frame > maxFrame || c.Length <= 0 || c.Length > GridSize {
		return 0, nil, errKeyedLine
	}
	if g.room -= int64(k.Frame); g.room < 0 {
		return 0, nil, errKeyedLine
	}
	n = keyedLineLen(c.Length)
	if len(text) < n {
		return 0, nil, errKeyedLine
	}
	l.line = text[:n]
	l.gap()
	k.Parts = make([]crypt.Part, partCount(c.Length))
	for i := range k.Parts {
		if !parsePart(&k.Parts[i], l.line[l.pos:]) {
			return 0, nil, errKeyedLine
		}
		l.pos += partHexLen
	}
	if !l.end() {
		return 0, nil, errKeyedLine
	}
	c.Keyed = &k
	return n, c, nil
}

func (g *groupLines) begin(line []byte) error {
	l := lineReader{line: line}
	l.word("g")
	g.group.FrameOffset = l.dec(10)
	length, generation := l.dec(8), l.dec(8)
	l.hex(&g.keyed.Group)
	if !l.end() || length <= 0 || length > maxGroup || generation < 1 || g.group.FrameOffset < g.end {
		return errKeyedLine
	}
	g.group.FrameLength, g.keyed.Generation = int32(length), int(generation)
	g.room, g.end = length, g.group.FrameOffset+length
	return nil
}

func parsePart(p *crypt.Part, src []byte) bool {
	var bad byte
	for i := range p {
		h, l := hexValue[src[2*i]], hexValue[src[2*i+1]]
		bad |= h | l
		p[i] = h<<4 | l
	}
	return bad < 0x10
}

// keyedTableText is the text of a pack's table; false: a number does not fit.
func keyedTableText(chunks []PackChunk) ([]byte, bool) {
	text := make([]byte, keyedHeadLen)
	l := lineWriter{line: text}
	l.word(keyedPackMagic)
	l.dec(8, int64(countGroups(chunks)))
	l.dec(8, int64(len(chunks)))
	ok := l.end()
	text, fits := appendGroupLines(text, chunks)
	return text, ok && fits && len(text) <= maxKeyedTable
}

// appendKeyedTable appends the table of a pack to its groups.
func appendKeyedTable(pack []byte, keys *crypt.Keys, chunks []PackChunk) ([]byte, error) {
	text, ok := keyedTableText(chunks)
	if !ok {
		return pack, fmt.Errorf("a pack of %d bytes is too long for its table", len(pack))
	}
	enc, err := newEncoder(LevelFastest, false)
	if err != nil {
		return pack, err
	}
	defer enc.close()
	var stored []byte
	for len(text) > 0 {
		n := min(len(text), maxText)
		if stored, err = enc.frame(stored, text[:n]); err != nil {
			return pack, err
		}
		text = text[n:]
	}
	return keys.Append(pack, crypt.Metadata, stored)
}

func countGroups(chunks []PackChunk) (n int) {
	last := int64(-1)
	for i := range chunks {
		if chunks[i].FrameOffset != last {
			n, last = n+1, chunks[i].FrameOffset
		}
	}
	return n
}

// parseKeyedTable reads the content of a pack's table, which begins at offset.
func parseKeyedTable(content []byte, offset int64) ([]PackChunk, error) {
	text, err := decodeFrames(content, maxKeyedTable)
	if err != nil {
		return nil, err
	}
	if len(text) < keyedHeadLen {
		return nil, errKeyedLine
	}
	l := lineReader{line: text[:keyedHeadLen]}
	l.word(keyedPackMagic)
	groups, count := l.dec(8), l.dec(8)
	if !l.end() || count < 1 || count > maxPackChunks {
		return nil, errors.New("the first line of the pack's table is not valid")
	}
	chunks := make([]PackChunk, 0, count)
	var g groupLines
	for text = text[keyedHeadLen:]; len(text) > 0; {
		begin := g.end
		n, c, err := g.next(text)
		if err != nil {
			return nil, err
		}
		switch {
		case c == nil && g.group.FrameOffset != begin:
			return nil, errors.New("the groups in the table do not lie back to back")
		case c != nil && int64(len(chunks)) == count:
			return nil, errors.New("the table has more chunks than it says")
		case c != nil:
			chunks = append(chunks, *c)
		}
		text = text[n:]
	}
	if int64(len(chunks)) != count || int64(countGroups(chunks)) != groups || g.end != offset {
		return nil, errors.New("the groups in the table do not fill the pack")
	}
	return chunks, nil
}

// decodeFrames decodes zstd frames that lie back to back into at most limit bytes.
func decodeFrames(stored []byte, limit int) ([]byte, error) {
	dec, err := newDecoder()
	if err != nil {
		return nil, err
	}
	defer dec.close()
	var text, buf []byte
	for len(stored) > 0 {
		n, content, err := frameExtent(stored)
		if err != nil {
			return nil, err
		}
		if content > int64(limit-len(text)) {
			return nil, fmt.Errorf("%w: content of more than %d bytes", errFrame, limit)
		}
		if buf, err = dec.frame(stored[:n], buf, maxText); err != nil {
			return nil, err
		}
		text, stored = append(text, buf...), stored[n:]
	}
	return text, nil
}

// keyedTableTail is how much of a pack is read for its table at first, bytes, and then, as
// long as its beginning is not among that, four times as much.
const keyedTableTail = 128 << 10

// readKeyedTable finds, reads and checks the table of an encrypted pack.
func readKeyedTable(ctx context.Context, store objstore.Store, keys *crypt.Keys, pack Ref) ([]PackChunk, error) {
	key := PackKey(pack.Name)
	if pack.Length <= 0 || pack.Length > maxPackLength {
		return nil, damagef(key, 0, 0, "a pack can't be %d bytes long", pack.Length)
	}
	for n := min(pack.Length, keyedTableTail); ; n = min(pack.Length, 4*n) {
		tail := make([]byte, n)
		if err := readRange(ctx, store, key, pack.Length-n, tail, pack.Length); err != nil {
			return nil, err
		}
		if at := bytes.LastIndex(tail, []byte(ageMagic)); at >= 0 {
			return openKeyedTable(keys, key, tail[at:], pack.Length-n+int64(at))
		}
		if n == pack.Length || n > maxKeyedTable {
			return nil, damagef(key, 0, 0, "it does not end with a table")
		}
	}
}

func openKeyedTable(keys *crypt.Keys, key string, table []byte, at int64) ([]PackChunk, error) {
	content, err := keys.Open(nil, crypt.Metadata, table)
	if err != nil {
		return nil, unopened(key, at, int64(len(table)), err)
	}
	chunks, err := parseKeyedTable(content, at)
	if err != nil {
		return nil, &DamageError{Object: key, Offset: at, Length: int64(len(table)), Err: err}
	}
	return chunks, nil
}
