// SPDX-License-Identifier: Apache-2.0

package bitmapstore

import (
	"bufio"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// Header describes a stored bitmap.
type Header struct {
	Name        string // any bytes
	Granularity int64  // bytes, a power of two
	Size        int64  // of the virtual disk, bytes
	DirtyBytes  int64  // from the last line: [Decode] sets it, [Encode] ignores it
}

// DamageError says that a stored bitmap is not what [Encode] writes. A failure to read it is never
// one.
type DamageError struct {
	Line int64 // of the text, from 1; 0: not in the text
	Err  error
}

func (e *DamageError) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("stored bitmap is damaged: %v", e.Err)
	}
	return fmt.Sprintf("stored bitmap is damaged: line %d: %v", e.Line, e.Err)
}

func (e *DamageError) Unwrap() error { return e.Err }

const (
	magicLine = "imgbackup-bitmap 1\n"
	// windowSize bounds what a reader must remember of the text.
	windowSize = 1 << 20
	// maxLine is the longest line: a name of 1023 bytes, each percent-encoded, fits with room to
	// spare.
	maxLine = 64 << 10
	// numberWidth is the width of a number in a run line, so that all of them are equally long.
	numberWidth = 19
	runLine     = 2*numberWidth + 2
)

// Encode writes the bitmap in its stored form: zstd-compressed text, see docs/format.md. It
// streams; the same bitmap always gives the same bytes with the same version of the compressor. A
// set that does not fit the header is an error.
func Encode(w io.Writer, h Header, r Runs) (runs, dirty int64, err error) {
	if err := h.check(); err != nil {
		return 0, 0, fmt.Errorf("bitmapstore: %w", err)
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(windowSize), zstd.WithEncoderCRC(true))
	if err != nil {
		return 0, 0, err
	}
	text := bufio.NewWriterSize(z, 1<<16)
	fmt.Fprintf(text, "%sname %s\ngranularity %d\nsize %d\n", magicLine, escape(h.Name), h.Granularity, h.Size)
	c := runChecker{h: h}
	for run, err := range r.seq() {
		if err != nil {
			return 0, 0, err
		}
		if err := c.add(run); err != nil {
			return 0, 0, fmt.Errorf("bitmapstore: bitmap %q: %w", h.Name, err)
		}
		line := appendNumber(text.AvailableBuffer(), run.Start)
		line = append(line, ' ')
		line = appendNumber(line, run.Len())
		line = append(line, '\n')
		if _, err := text.Write(line); err != nil {
			return 0, 0, err
		}
	}
	if _, err := fmt.Fprintf(text, "end %d %d\n", c.runs, c.dirty); err != nil {
		return 0, 0, err
	}
	if err := text.Flush(); err != nil {
		return 0, 0, err
	}
	if err := z.Close(); err != nil {
		return 0, 0, err
	}
	return c.runs, c.dirty, nil
}

// Decode proves the whole stored bitmap once and gives its header and its runs, which open and
// prove it again for each iteration. A *DamageError says that the bytes are wrong; any other error
// is a failure of open or of its reader.
func Decode(open func() (io.ReadCloser, error)) (Header, Runs, error) {
	h, err := decode(open, nil, func(Run) bool { return true })
	if err != nil {
		return Header{}, nil, err
	}
	return h, func(yield func(Run, error) bool) {
		stopped := false
		_, err := decode(open, &h, func(r Run) bool {
			stopped = !yield(r, nil)
			return !stopped
		})
		if err != nil && !stopped {
			yield(Run{}, err)
		}
	}, nil
}

// decode reads a stored bitmap and calls run for each of its runs until it returns false. When want
// is given, the header must be that one.
func decode(open func() (io.ReadCloser, error), want *Header, run func(Run) bool) (h Header, err error) {
	f, err := open()
	if err != nil {
		return Header{}, err
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = cerr
		}
	}()
	source := &sys.FailureReader{R: f}
	z, err := zstd.NewReader(source, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(windowSize),
		zstd.WithDecoderLowmem(true))
	if err != nil {
		return Header{}, err
	}
	defer z.Close()
	d := textReader{text: bufio.NewReaderSize(z, maxLine)}
	h, err = d.all(want, run)
	if source.Err != nil {
		return Header{}, fmt.Errorf("reading a stored bitmap: %w", source.Err)
	}
	if err != nil {
		return Header{}, &DamageError{Line: d.line, Err: err}
	}
	return h, nil
}

// check refuses what a stored bitmap cannot say.
func (h *Header) check() error {
	if h.Granularity <= 0 || h.Granularity&(h.Granularity-1) != 0 {
		return fmt.Errorf("granularity %d is not a power of two", h.Granularity)
	}
	if h.Size < 0 {
		return fmt.Errorf("disk size %d is negative", h.Size)
	}
	if len(h.Name)*3 > maxLine-64 {
		return fmt.Errorf("name of %d bytes is too long", len(h.Name))
	}
	return nil
}

// runChecker proves that runs are those of a bitmap, and counts them.
type runChecker struct {
	h           Header
	end         int64 // of the previous run
	runs, dirty int64
}

func (c *runChecker) add(r Run) error {
	mask := c.h.Granularity - 1
	switch {
	case r.Start < 0 || r.Start >= r.End:
		return fmt.Errorf("run %d to %d is empty or negative", r.Start, r.End)
	case r.End > c.h.Size:
		return fmt.Errorf("run %d to %d passes the end of the disk of %d bytes", r.Start, r.End, c.h.Size)
	case c.runs > 0 && r.Start <= c.end:
		return fmt.Errorf("run %d to %d does not lie behind the end of the previous one at %d", r.Start, r.End, c.end)
	case r.Start&mask != 0 || r.End&mask != 0 && r.End != c.h.Size:
		return fmt.Errorf("run %d to %d is not aligned to the granularity of %d bytes", r.Start, r.End, c.h.Granularity)
	}
	c.end = r.End
	c.runs++
	c.dirty += r.Len()
	return nil
}

// appendNumber appends n, right-aligned with spaces: leading zeros would be octal to a shell.
func appendNumber(b []byte, n int64) []byte {
	var digits [numberWidth]byte
	i := numberWidth
	for {
		i--
		digits[i] = byte('0' + n%10)
		n /= 10
		if n == 0 {
			break
		}
	}
	for j := range i {
		digits[j] = ' '
	}
	return append(b, digits[:]...)
}
