// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/imgbackup/imgbackup/crypt"
)

// A group is what an encrypted pack has in place of a frame: frames that follow one
// another, encrypted together, so that small ones do not cost a key each. It is as large as
// what is read with one request should be. Before its frames it has a list of them in a
// skippable frame, after them another one that pads it.

const (
	// groupSize is how many bytes of frames end a group.
	groupSize      = 256 << 10
	maxGroupFrames = 1024
	groupLineLen   = 8 + 1 + 7 + 1 + 2*groupDigest + 1
	// groupDigest is how much of a chunk's digest finds its frame in a group, bytes.
	groupDigest = 8
	// maxGroupContent is what a group of one frame of the largest length has, or one of
	// the most frames, and the padding.
	maxGroupContent = (maxFrame + maxGroupFrames*groupLineLen + 2*skippableHead) * 9 / 8
	// maxGroup bounds a stored group, bytes.
	maxGroup = maxGroupContent + crypt.MaxHeader + 16*(maxGroupContent/(64<<10)+2)
)

// frameLimit is the length of the longest frame, or group.
func frameLimit(keys *crypt.Keys) int32 {
	if keys == nil {
		return maxFrame
	}
	return maxGroup
}

// groupBuilder collects the frames of a group.
type groupBuilder struct {
	lines  []byte
	frames []byte
	raw    int // bytes of the chunks
}

func (g *groupBuilder) empty() bool { return len(g.lines) == 0 }

// full reports whether a frame begins a new group.
func (g *groupBuilder) full() bool {
	return !g.empty() && (len(g.frames) >= groupSize || len(g.lines) >= maxGroupFrames*groupLineLen)
}

// room is how long the group is, stored, at most, if a frame of n bytes is added; 0 bytes: as it is.
func (g *groupBuilder) room(n int) int {
	if g.empty() && n == 0 {
		return 0
	}
	content := crypt.Padded(len(g.lines) + groupLineLen + len(g.frames) + n + 2*skippableHead)
	return content + crypt.MaxHeader + 16*(content/(64<<10)+2)
}

func (g *groupBuilder) add(frame []byte, length int32, chunk *Digest) {
	g.lines = appendGroupLine(g.lines, len(frame), length, chunk)
	g.frames = append(g.frames, frame...)
	g.raw += int(length)
}

// seal appends the group to dst, encrypted, and is empty after that.
func (g *groupBuilder) seal(dst []byte, keys *crypt.Keys) ([]byte, error) {
	dst, err := appendGroup(dst, keys, g.lines, g.frames, g.raw)
	g.lines, g.frames, g.raw = g.lines[:0], g.frames[:0], 0
	return dst, err
}

// appendLone appends the group of a frame that has one by itself.
func appendLone(dst []byte, keys *crypt.Keys, frame []byte, length int, chunk *Digest) ([]byte, error) {
	line := appendGroupLine(make([]byte, 0, groupLineLen), len(frame), int32(length), chunk)
	return appendGroup(dst, keys, line, frame, length)
}

func appendGroupLine(lines []byte, frame int, length int32, chunk *Digest) []byte {
	n := len(lines)
	lines = append(lines, make([]byte, groupLineLen)...)
	l := lineWriter{line: lines[n:]}
	l.dec(8, int64(frame))
	l.dec(7, int64(length))
	l.word(chunk.String()[:2*groupDigest])
	_ = l.end() // what is that long has no frame
	return lines
}

// appendGroup encrypts a group of these lines and frames, of chunks that have raw bytes.
func appendGroup(dst []byte, keys *crypt.Keys, lines, frames []byte, raw int) ([]byte, error) {
	head := appendSkippable(make([]byte, 0, skippableHead+len(lines)), len(lines))
	head = append(head, lines...)
	var pad []byte
	if len(frames) < raw { // what does not compress has the length of its chunks, and tells no more
		pad = padding(keys, len(head)+len(frames))
	}
	return keys.Append(dst, crypt.Data, head, frames, pad)
}

// padding is a skippable frame that makes content of n bytes as long as others are.
func padding(keys *crypt.Keys, n int) []byte {
	if !keys.Pads() || crypt.Padded(n) == n {
		return nil
	}
	more := crypt.Padded(n+skippableHead) - n - skippableHead
	return append(appendSkippable(nil, more), make([]byte, more)...)
}

var errGroup = errors.New("the list of frames at the beginning of the group is not valid")

// group is a group that is open. Its frames are asked for in any order, best in theirs.
type group struct {
	lines []byte // that are left
	all   []byte
	rest  []byte // from the frame of the first of lines on
	whole []byte
}

// openGroup takes apart what a group decrypts to.
func openGroup(content []byte) (group, error) {
	if len(content) < skippableHead {
		return group{}, errGroup
	}
	n := skippableHead + int(binary.LittleEndian.Uint32(content[4:]))
	if n < skippableHead+groupLineLen || n > skippableHead+maxGroupFrames*groupLineLen || n > len(content) {
		return group{}, errGroup
	}
	lines, ok := skippable(content[:n])
	if !ok || len(lines)%groupLineLen != 0 {
		return group{}, errGroup
	}
	return group{lines: lines, all: lines, rest: content[n:], whole: content[n:]}, nil
}

// frame returns the frame of a chunk.
func (g *group) frame(chunk *Digest) ([]byte, error) {
	want := chunk.String()[:2*groupDigest]
	for range 2 {
		for len(g.lines) > 0 {
			f, err := g.parse()
			if err != nil {
				return nil, err
			}
			if f.digest == want {
				return g.rest[:f.length], nil
			}
			g.lines, g.rest = g.lines[groupLineLen:], g.rest[f.length:]
		}
		g.lines, g.rest = g.all, g.whole
	}
	return nil, fmt.Errorf("the group has no chunk %s", chunk)
}

type groupFrame struct {
	length, raw int
	digest      string
}

// parse reads the first of the lines that are left.
func (g *group) parse() (groupFrame, error) {
	l := lineReader{line: g.lines[:groupLineLen]}
	f := groupFrame{length: int(l.dec(8)), raw: int(l.dec(7))}
	l.gap()
	f.digest = string(l.line[l.pos:][:2*groupDigest])
	l.pos += 2 * groupDigest
	if !l.end() || f.length <= 0 || f.length > min(maxFrame, len(g.rest)) || f.raw <= 0 || f.raw > GridSize {
		return groupFrame{}, errGroup
	}
	return f, nil
}
