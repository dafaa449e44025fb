// SPDX-License-Identifier: Apache-2.0

package bitmapstore

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
)

// textReader parses the text of a stored bitmap. It accepts exactly what Encode writes.
type textReader struct {
	text *bufio.Reader
	line int64 // number of the line last read
}

// all parses the whole text, unless run returns false.
func (t *textReader) all(want *Header, run func(Run) bool) (Header, error) {
	h, err := t.header()
	if err != nil {
		return Header{}, err
	}
	if want != nil && (h.Name != want.Name || h.Granularity != want.Granularity || h.Size != want.Size) {
		return Header{}, errors.New("the header has changed since it was read first")
	}
	c := runChecker{h: h}
	for {
		line, err := t.next()
		if err != nil {
			return Header{}, err
		}
		if bytes.HasPrefix(line, []byte("end ")) {
			h.DirtyBytes = c.dirty
			return h, t.end(line, &c)
		}
		r, err := parseRun(line)
		if err != nil {
			return Header{}, err
		}
		if err := c.add(r); err != nil {
			return Header{}, err
		}
		if !run(r) {
			return Header{}, nil
		}
	}
}

func (t *textReader) header() (Header, error) {
	var h Header
	line, err := t.next()
	if err != nil {
		return h, err
	}
	if string(line) != magicLine {
		return h, fmt.Errorf("%.40q is not the first line of a bitmap", line)
	}
	name, err := t.field("name ")
	if err != nil {
		return h, err
	}
	if h.Name, err = unescape(name); err != nil {
		return h, err
	}
	granularity, err := t.field("granularity ")
	if err != nil {
		return h, err
	}
	if h.Granularity, err = parseNumber(granularity); err != nil {
		return h, err
	}
	size, err := t.field("size ")
	if err != nil {
		return h, err
	}
	if h.Size, err = parseNumber(size); err != nil {
		return h, err
	}
	return h, h.check()
}

// end proves the last line, and that it is the last.
func (t *textReader) end(line []byte, c *runChecker) error {
	if want := fmt.Sprintf("end %d %d\n", c.runs, c.dirty); string(line) != want {
		return fmt.Errorf("the last line is %.60q, but the runs before it give %q", line, want)
	}
	switch _, err := t.text.ReadByte(); {
	case err == nil:
		return errors.New("there is text behind the last line")
	case !errors.Is(err, io.EOF):
		return err
	}
	return nil
}

// next reads a line with its line feed. It is valid until the next call.
func (t *textReader) next() ([]byte, error) {
	t.line++
	line, err := t.text.ReadSlice('\n')
	switch {
	case err == nil:
		return line, nil
	case errors.Is(err, io.EOF):
		return nil, errors.New("the text ends before its last line")
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, errors.New("the line is too long")
	}
	return nil, err
}

// field reads a header line that begins with key.
func (t *textReader) field(key string) (string, error) {
	line, err := t.next()
	if err != nil {
		return "", err
	}
	value, ok := strings.CutPrefix(string(line), key)
	if !ok {
		return "", fmt.Errorf("%.40q does not begin with %q", line, key)
	}
	return strings.TrimSuffix(value, "\n"), nil
}

// parseRun parses a line of two right-aligned numbers: start and length.
func parseRun(line []byte) (Run, error) {
	if len(line) != runLine || line[numberWidth] != ' ' {
		return Run{}, fmt.Errorf("%.60q is no run", line)
	}
	start, ok1 := parseAligned(line[:numberWidth])
	length, ok2 := parseAligned(line[numberWidth+1 : runLine-1])
	if !ok1 || !ok2 || length > math.MaxInt64-start {
		return Run{}, fmt.Errorf("%.60q is no run", line)
	}
	return Run{Start: start, End: start + length}, nil
}

// parseAligned parses digits behind spaces, without leading zeros.
func parseAligned(b []byte) (int64, bool) {
	i := 0
	for i < len(b) && b[i] == ' ' {
		i++
	}
	if i == len(b) || b[i] == '0' && i != len(b)-1 {
		return 0, false
	}
	var n uint64 // 19 digits fit
	for ; i < len(b); i++ {
		d := b[i] - '0'
		if d > 9 {
			return 0, false
		}
		n = n*10 + uint64(d)
	}
	return int64(n), n <= math.MaxInt64
}

// parseNumber parses a number of a header line, without sign and leading zeros.
func parseNumber(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != s {
		return 0, fmt.Errorf("%.40q is no number", s)
	}
	return n, nil
}

// escape writes a name so that it fits a line: bytes other than letters, digits, '.', '_' and '-'
// become %XX.
func escape(name string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(name) {
		if c := name[i]; plain(c) {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	return b.String()
}

func plain(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-'
}

// unescape is the inverse of escape, and refuses what escape would have written otherwise.
func unescape(s string) (string, error) {
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '%' {
			if len(s)-i < 3 {
				return "", fmt.Errorf("%.40q is no escaped name", s)
			}
			v, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
			if err != nil {
				return "", fmt.Errorf("%.40q is no escaped name", s)
			}
			c = byte(v)
			i += 2
		}
		b = append(b, c)
	}
	if name := string(b); escape(name) == s {
		return name, nil
	}
	return "", fmt.Errorf("%.40q is no escaped name", s)
}
