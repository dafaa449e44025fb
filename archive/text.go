// SPDX-License-Identifier: Apache-2.0

package archive

import "encoding/hex"

const hexLen = 64

// Stored lines have fields of fixed width, so that dd and awk find their way:
// numbers are decimal, right-aligned with spaces (leading zeros would be octal to
// a shell), digests are 64 lower-case hex digits.

// putDec writes v ≥ 0 into all of dst. It reports false when v has too many digits.
func putDec(dst []byte, v int64) bool {
	i := len(dst)
	for {
		if i == 0 {
			return false
		}
		i--
		dst[i] = byte('0' + v%10)
		v /= 10
		if v == 0 {
			break
		}
	}
	for j := range i {
		dst[j] = ' '
	}
	return true
}

// parseDec reads what putDec wrote, at most 19 bytes. ok is false for anything
// else, and for numbers above 1<<63-1.
func parseDec(src []byte) (v int64, ok bool) {
	i := 0
	for i < len(src)-1 && src[i] == ' ' {
		i++
	}
	if i >= len(src) || len(src)-i > 19 || src[i] == '0' && i != len(src)-1 {
		return 0, false
	}
	var u uint64
	for _, c := range src[i:] {
		c -= '0'
		if c > 9 {
			return 0, false
		}
		u = u*10 + uint64(c)
	}
	return int64(u), int64(u) >= 0
}

func putHex(dst []byte, d *Digest) { hex.Encode(dst, d[:]) }

// hexValue maps the digits 0-9a-f to their value, all other bytes to 0xff.
var hexValue = func() (t [256]byte) {
	for i := range t {
		t[i] = 0xff
	}
	for i, c := range "0123456789abcdef" {
		t[c] = byte(i)
	}
	return t
}()

// parseHex reads the 64 lower-case hex digits at the start of src.
func parseHex(d *Digest, src []byte) bool {
	src = src[:hexLen]
	var bad byte
	for i := range d {
		h, l := hexValue[src[2*i]], hexValue[src[2*i+1]]
		bad |= h | l
		d[i] = h<<4 | l
	}
	return bad < 0x10
}

// A lineWriter fills a line of fixed width field by field.
type lineWriter struct {
	line []byte
	pos  int
	bad  bool // a number did not fit
}

func (l *lineWriter) word(s string) {
	l.gap()
	l.pos += copy(l.line[l.pos:], s)
}

func (l *lineWriter) dec(width int, v int64) {
	l.gap()
	l.bad = !putDec(l.line[l.pos:l.pos+width], v) || l.bad
	l.pos += width
}

func (l *lineWriter) hex(d *Digest) {
	l.gap()
	putHex(l.line[l.pos:l.pos+hexLen], d)
	l.pos += hexLen
}

func (l *lineWriter) gap() {
	if l.pos > 0 {
		l.line[l.pos] = ' '
		l.pos++
	}
}

// end ends the line and reports whether all fields fitted and filled it.
func (l *lineWriter) end() bool {
	l.line[l.pos] = '\n'
	return !l.bad && l.pos+1 == len(l.line)
}

// A lineReader reads such a line; line must have the right length. After the last
// field, end reports whether all was well.
type lineReader struct {
	line []byte
	pos  int
	bad  bool
}

func (l *lineReader) word(s string) {
	l.gap()
	if string(l.line[l.pos:l.pos+len(s)]) != s {
		l.bad = true
	}
	l.pos += len(s)
}

func (l *lineReader) dec(width int) int64 {
	l.gap()
	v, ok := parseDec(l.line[l.pos : l.pos+width])
	l.bad = l.bad || !ok
	l.pos += width
	return v
}

func (l *lineReader) hex(d *Digest) {
	l.gap()
	if !parseHex(d, l.line[l.pos:]) {
		l.bad = true
	}
	l.pos += hexLen
}

func (l *lineReader) gap() {
	if l.pos > 0 {
		l.bad = l.bad || l.line[l.pos] != ' '
		l.pos++
	}
}

func (l *lineReader) end() bool {
	return !l.bad && l.pos+1 == len(l.line) && l.line[l.pos] == '\n'
}
