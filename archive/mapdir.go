// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"errors"
	"fmt"
)

// The kinds of frames of a map, in their order in the object.
const (
	kindHead  = 'h' // one: the header
	kindPacks = 'p' // any number: lines that number the packs
	kindRuns  = 'r' // any number: runs
	kindEnd   = 'e' // one: the counts
)

// dirFrame is one line of a map's directory.
type dirFrame struct {
	offset     int64 // in the object, bytes
	first, end int64 // guest bytes from the first run's offset to the last run's end; 0 0 for other kinds
	length     int32 // stored bytes
	raw        int32 // bytes of text
	lines      int32 // in it
	kind       byte
	sum        Digest // of the stored bytes
}

func (f *dirFrame) put(line []byte) bool {
	l := lineWriter{line: line}
	l.word(string(rune(f.kind)))
	l.dec(15, f.offset)
	l.dec(8, int64(f.length))
	l.dec(8, int64(f.raw))
	l.dec(19, f.first)
	l.dec(19, f.end)
	l.dec(8, int64(f.lines))
	l.hex(&f.sum)
	return l.end()
}

func (f *dirFrame) parse(line []byte) bool {
	f.kind = line[0]
	l := lineReader{line: line[:dirLineLen], pos: 1}
	f.offset = l.dec(15)
	f.length = int32(l.dec(8))
	f.raw = int32(l.dec(8))
	f.first = l.dec(19)
	f.end = l.dec(19)
	f.lines = int32(l.dec(8))
	l.hex(&f.sum)
	return l.end()
}

// rawLength is the length of the text that a frame of this kind and number of
// lines has; -1: any up to maxMapHead.
func (f *dirFrame) rawLength() int64 {
	switch f.kind {
	case kindPacks:
		return int64(f.lines) * int64(namedLineLen)
	case kindRuns:
		return int64(f.lines) * int64(runLineLen)
	case kindEnd:
		return int64(endLineLen)
	}
	return -1
}

// mayFollow reports whether a frame of kind next may come after one of kind prev
// (0: at the beginning).
func mayFollow(prev, next byte) bool {
	switch prev {
	case 0:
		return next == kindHead
	case kindHead, kindPacks:
		return next == kindPacks || next == kindRuns || next == kindEnd
	case kindRuns:
		return next == kindRuns || next == kindEnd
	}
	return false
}

// check judges the frame that comes after prev.
func (f *dirFrame) check(prev *dirFrame) error {
	if f.offset != prev.offset+int64(prev.length) {
		return errors.New("a frame does not begin where the one before it ends")
	}
	if !mayFollow(prev.kind, f.kind) {
		return fmt.Errorf("a frame of kind %q stands at the wrong place", f.kind)
	}
	if f.length <= 0 || f.raw <= 0 || f.lines <= 0 || f.lines > maxFrameLines || f.raw > maxText || f.length > maxStored {
		return errors.New("the length of a frame is out of range")
	}
	want := f.rawLength()
	if want < 0 && f.raw > maxMapHead || want >= 0 && int64(f.raw) != want || f.kind == kindEnd && f.lines != 1 {
		return errors.New("the length of a frame contradicts its number of lines")
	}
	if f.kind != kindRuns {
		if f.first != 0 || f.end != 0 {
			return errors.New("a frame without runs has guest offsets")
		}
		return nil
	}
	if f.first >= f.end || prev.kind == kindRuns && f.first < prev.end {
		return errors.New("the frames of runs are not in order")
	}
	return nil
}

// appendDir appends the skippable frame with the directory; offset is where it
// begins in the object.
func appendDir(dst []byte, frames []dirFrame, offset int64) ([]byte, error) {
	n := len(frames) * dirLineLen
	if n+dirFooterLen+skippableHead > maxDirLength {
		return nil, fmt.Errorf("a map of %d frames is too long", len(frames))
	}
	dst = appendSkippable(dst, n+dirFooterLen)
	start := len(dst)
	dst = append(dst, make([]byte, n+dirFooterLen)...)
	lines, ok := dst[start:start+n], true
	for i := range frames {
		ok = frames[i].put(lines[i*dirLineLen:][:dirLineLen]) && ok
	}
	sum := Sum(lines)
	l := lineWriter{line: dst[start+n:]}
	l.word(dirMagic)
	l.dec(8, int64(len(frames)))
	l.dec(15, offset)
	l.dec(10, int64(n))
	l.hex(&sum)
	if !l.end() || !ok {
		return nil, errors.New("a map is too long for its directory")
	}
	return dst, nil
}

// parseDir reads the directory that is all of b and begins at offset in the object.
func parseDir(b []byte, offset int64) ([]dirFrame, error) {
	content, ok := skippable(b)
	if !ok || len(content) < dirFooterLen {
		return nil, errors.New("the map's directory is not in a skippable frame of its length")
	}
	lines := content[:len(content)-dirFooterLen]
	l := lineReader{line: content[len(lines):]}
	var sum Digest
	l.word(dirMagic)
	count, at, n := l.dec(8), l.dec(15), l.dec(10)
	l.hex(&sum)
	if !l.end() || n != int64(len(lines)) || count*int64(dirLineLen) != n || at != offset || count < 2 {
		return nil, errors.New("the footer of the map's directory is not valid")
	}
	if Sum(lines) != sum {
		return nil, errors.New("the map's directory does not have the SHA-256 that its footer states")
	}
	frames := make([]dirFrame, count)
	var prev dirFrame
	for i := range frames {
		f := &frames[i]
		if !f.parse(lines[i*dirLineLen:]) {
			return nil, fmt.Errorf("line %d of the map's directory is not valid", i+1)
		}
		if err := f.check(&prev); err != nil {
			return nil, fmt.Errorf("line %d of the map's directory: %w", i+1, err)
		}
		prev = *f
	}
	if prev.kind != kindEnd || prev.offset+int64(prev.length) != offset {
		return nil, errors.New("the frames in the map's directory do not fill the map")
	}
	return frames, nil
}
