// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"
	"errors"
	"fmt"

	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/objstore"
)

const (
	defaultPackSize = 32 << 20
	minPackSize     = 64 << 10
	maxPackSize     = 256 << 20
	maxPackLength   = 1 << 30 // of a pack that is read
	maxPackChunks   = 16384   // so that a table stays below 2 MiB

	packMagic     = "imgbackup-pack 1"
	packLineLen   = 10 + 1 + 8 + 1 + 7 + 1 + hexLen + 1
	packFooterLen = len(packMagic) + 1 + 8 + 1 + 10 + 1 + 10 + 1 + hexLen + 1
)

// PackChunk is one line of a pack's table.
type PackChunk struct {
	FrameOffset int64 // in the pack, bytes
	FrameLength int32 // bytes
	Length      int32 // of the chunk, bytes
	Chunk       Digest
	Keyed       *KeyedChunk // of an encrypted pack: then the frame is the group that has the chunk
}

// KeyedChunk is what the table of an encrypted pack says more of a chunk.
type KeyedChunk struct {
	Frame      int32        // length of the chunk's frame in the group, bytes
	Group      Digest       // SHA-256 of the group as it is stored
	Generation int          // of the keys under which it was stored
	Parts      []crypt.Part // digests of its parts
}

func (c *PackChunk) put(line []byte) bool {
	l := lineWriter{line: line}
	l.dec(10, c.FrameOffset)
	l.dec(8, int64(c.FrameLength))
	l.dec(7, int64(c.Length))
	l.hex(&c.Chunk)
	return l.end()
}

func (c *PackChunk) parse(line []byte) bool {
	l := lineReader{line: line}
	c.FrameOffset = l.dec(10)
	c.FrameLength = int32(l.dec(8))
	c.Length = int32(l.dec(7))
	l.hex(&c.Chunk)
	return l.end() && c.FrameLength > 0 && c.FrameLength <= maxFrame && c.Length > 0 && c.Length <= GridSize
}

// packTableLen is the length of the skippable frame with the table of n chunks.
func packTableLen(n int) int { return skippableHead + n*packLineLen + packFooterLen }

// PackLength is the length of a pack whose frames have bytes and are chunks in number.
func PackLength(bytes int64, chunks int) int64 { return bytes + int64(packTableLen(chunks)) }

// packBuilder fills one pack.
type packBuilder struct {
	buf    []byte
	chunks []PackChunk
	keys   *crypt.Keys // nil: it is plain
	group  groupBuilder
	open   int // the first chunk of the group
}

// hasRoom reports whether n stored bytes, a frame of one chunk or a group of several, may be added
// below the target size. An empty pack always has room.
func (p *packBuilder) hasRoom(n, chunks int, target int64) bool {
	chunks += len(p.chunks)
	return len(p.chunks) == 0 ||
		chunks <= maxPackChunks && int64(len(p.buf)+n+p.tableRoom(chunks)) <= target
}

// hasRoomFor reports it of a frame of n bytes that goes on in the open group, or begins one.
func (p *packBuilder) hasRoomFor(n int, target int64) bool {
	return p.hasRoom(p.group.room(n), 1, target)
}

// tableRoom is what the table of so many chunks takes at most. An encrypted one is compressed, but
// nearly all of it is digests.
func (p *packBuilder) tableRoom(chunks int) int {
	if p.keys == nil {
		return packTableLen(chunks)
	}
	return crypt.MaxHeader + chunks*(groupDirLen+keyedLineLen(GridSize))*3/5
}

func (p *packBuilder) add(frame []byte, length int32, chunk Digest) (offset int64) {
	offset = int64(len(p.buf))
	p.buf = append(p.buf, frame...)
	p.chunks = append(p.chunks, PackChunk{FrameOffset: offset, FrameLength: int32(len(frame)), Length: length, Chunk: chunk})
	return offset
}

// addKeyed is add for an encrypted pack. The group that the frame is in is not as long yet as
// it will be when it is ended.
func (p *packBuilder) addKeyed(frame []byte, length int32, chunk Digest, parts []crypt.Part) (offset int64) {
	if p.group.empty() {
		p.open = len(p.chunks)
	}
	p.group.add(frame, length, &chunk)
	offset = int64(len(p.buf))
	p.chunks = append(p.chunks, PackChunk{FrameOffset: offset, Length: length, Chunk: chunk, Keyed: &KeyedChunk{
		Frame: int32(len(frame)), Generation: p.keys.Generation(), Parts: parts,
	}})
	return offset
}

// addLone adds a group that is encrypted, of one frame.
func (p *packBuilder) addLone(stored []byte, length int32, chunk Digest, k *KeyedChunk) (offset int64) {
	offset = p.add(stored, length, chunk)
	p.chunks[len(p.chunks)-1].Keyed = k
	return offset
}

// endGroup encrypts the open group, and returns its length; 0: there is none.
func (p *packBuilder) endGroup() (length int32, err error) {
	if p.group.empty() {
		return 0, nil
	}
	at := len(p.buf)
	if p.buf, err = p.group.seal(p.buf, p.keys); err != nil {
		return 0, err
	}
	length, sum := int32(len(p.buf)-at), Sum(p.buf[at:])
	for i := p.open; i < len(p.chunks); i++ {
		p.chunks[i].FrameLength, p.chunks[i].Keyed.Group = length, sum
	}
	return length, nil
}

// seal appends the table.
func (p *packBuilder) seal() (err error) {
	if p.keys != nil {
		p.buf, err = appendKeyedTable(p.buf, p.keys, p.chunks)
		return err
	}
	n := len(p.chunks) * packLineLen
	p.buf = appendSkippable(p.buf, n+packFooterLen)
	start := len(p.buf)
	p.buf = append(p.buf, make([]byte, n+packFooterLen)...)
	lines := p.buf[start : start+n]
	ok := true
	for i := range p.chunks {
		ok = p.chunks[i].put(lines[i*packLineLen:][:packLineLen]) && ok
	}
	sum := Sum(lines)
	l := lineWriter{line: p.buf[start+n:]}
	l.word(packMagic)
	l.dec(8, int64(len(p.chunks)))
	l.dec(10, int64(start))
	l.dec(10, int64(n))
	l.hex(&sum)
	if !l.end() || !ok {
		return fmt.Errorf("a pack of %d bytes is too long for its table", len(p.buf))
	}
	return nil
}

// packFooter is the last line of a pack.
type packFooter struct {
	chunks        int64
	offset, bytes int64 // of the table's lines
	sum           Digest
}

// parse reads the footer of a pack of length bytes.
func (f *packFooter) parse(line []byte, length int64) error {
	if len(line) != packFooterLen {
		return errors.New("too short for a pack")
	}
	l := lineReader{line: line}
	l.word(packMagic)
	f.chunks = l.dec(8)
	f.offset = l.dec(10)
	f.bytes = l.dec(10)
	l.hex(&f.sum)
	if !l.end() {
		return errors.New("the pack does not end with the footer of its table")
	}
	if f.chunks < 1 || f.chunks > maxPackChunks || f.bytes != f.chunks*int64(packLineLen) ||
		f.offset < skippableHead || f.offset+f.bytes+int64(packFooterLen) != length {
		return errors.New("the footer of the pack's table contradicts the pack's length")
	}
	return nil
}

// parsePackTable reads the skippable frame at the end of a pack of length bytes.
func parsePackTable(tail []byte, length int64) ([]PackChunk, error) {
	var f packFooter
	if err := f.parse(tail[max(0, len(tail)-packFooterLen):], length); err != nil {
		return nil, err
	}
	content, ok := skippable(tail)
	if !ok || int64(len(content)) != f.bytes+int64(packFooterLen) {
		return nil, errors.New("the table is not in a skippable frame of its length")
	}
	lines := content[:f.bytes]
	if Sum(lines) != f.sum {
		return nil, errors.New("the table does not have the SHA-256 that its footer states")
	}
	chunks := make([]PackChunk, f.chunks)
	var next int64
	for i := range chunks {
		c := &chunks[i]
		if !c.parse(lines[i*packLineLen:][:packLineLen]) || c.FrameOffset != next {
			return nil, fmt.Errorf("line %d of the table is not valid", i+1)
		}
		next += int64(c.FrameLength)
	}
	if next != f.offset-skippableHead {
		return nil, errors.New("the frames in the table do not fill the pack")
	}
	return chunks, nil
}

// ReadPackTable reads and checks a pack's table: the frames in their order, back
// to back from the pack's first byte to the table.
func ReadPackTable(ctx context.Context, store objstore.Store, pack Ref) ([]PackChunk, error) {
	key := PackKey(pack.Name)
	if keys := KeysOf(store); keys != nil {
		return readKeyedTable(ctx, store, keys, pack)
	}
	if pack.Length < int64(packTableLen(1)) || pack.Length > maxPackLength {
		return nil, damagef(key, 0, 0, "a pack can't be %d bytes long", pack.Length)
	}
	tail := make([]byte, min(pack.Length, 128<<10))
	if err := readRange(ctx, store, key, pack.Length-int64(len(tail)), tail, pack.Length); err != nil {
		return nil, err
	}
	var f packFooter
	if err := f.parse(tail[len(tail)-packFooterLen:], pack.Length); err != nil {
		return nil, &DamageError{Object: key, Offset: pack.Length - int64(packFooterLen), Length: int64(packFooterLen), Err: err}
	}
	n := packTableLen(int(f.chunks))
	if n > len(tail) {
		tail = make([]byte, n)
		if err := readRange(ctx, store, key, pack.Length-int64(n), tail, pack.Length); err != nil {
			return nil, err
		}
	}
	chunks, err := parsePackTable(tail[len(tail)-n:], pack.Length)
	if err != nil {
		return nil, &DamageError{Object: key, Offset: pack.Length - int64(n), Length: int64(n), Err: err}
	}
	return chunks, nil
}

// FrameBytes is what the frames of a pack, or its groups, have together. The chunks of a group
// follow one another.
func FrameBytes(chunks []PackChunk) (bytes int64) {
	for len(chunks) > 0 {
		bytes += int64(chunks[0].FrameLength)
		chunks = chunks[groupOf(chunks):]
	}
	return bytes
}
