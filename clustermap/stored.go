// SPDX-License-Identifier: Apache-2.0

package clustermap

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"strconv"

	"github.com/klauspost/compress/zstd"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// Header describes a stored fingerprint.
type Header struct {
	Unit  int64 // bytes
	Units int64 // how many it covers
}

// DamageError says that a stored fingerprint is not what [Encode] writes. A failure to read it
// is never one.
type DamageError struct {
	Line int64 // of the text, from 1
	Err  error
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("stored cluster map is damaged: line %d: %v", e.Line, e.Err)
}

func (e *DamageError) Unwrap() error { return e.Err }

const (
	magicLine = "imgbackup-clusters 1\n"
	// windowSize bounds what a reader must remember of the text.
	windowSize = 1 << 20
	// writeWindow is what a writer remembers: more makes it no smaller.
	writeWindow = 256 << 10
	// maxLine is longer than any line.
	maxLine = 128
)

func (h Header) check() error {
	if h.Unit < MinUnit || h.Unit > MaxUnit || h.Unit&(h.Unit-1) != 0 {
		return fmt.Errorf("a unit of %d bytes", h.Unit)
	}
	if h.Units < 1 || h.Units > math.MaxInt64/h.Unit {
		return fmt.Errorf("%d units", h.Units)
	}
	return nil
}

// Encode writes runs in their stored form, zstd-compressed text: see docs/format.md. The same
// runs always give the same bytes with the same version of the compressor.
func Encode(w io.Writer, h Header, runs iter.Seq2[Run, error]) error {
	if err := h.check(); err != nil {
		return fmt.Errorf("clustermap: %w", err)
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(writeWindow), zstd.WithEncoderCRC(true))
	if err != nil {
		return err
	}
	text := bufio.NewWriterSize(z, 1<<16)
	fmt.Fprintf(text, "%sunit %d\nunits %d\n", magicLine, h.Unit, h.Units)
	var lines, units int64
	for r, err := range runs {
		if err != nil {
			return err
		}
		if _, err := text.Write(append(r.append(text.AvailableBuffer()), '\n')); err != nil {
			return err
		}
		lines++
		units += r.Count
	}
	if units != h.Units {
		return fmt.Errorf("clustermap: the runs have %d units, not %d", units, h.Units)
	}
	fmt.Fprintf(text, "end %d\n", lines)
	if err := text.Flush(); err != nil {
		return err
	}
	return z.Close()
}

// append writes the run's line, without its line feed.
func (r *Run) append(b []byte) []byte {
	b = append(b, byte(r.Kind), ' ')
	if r.Kind == Mixed {
		return fmt.Appendf(b, "%08x", r.Sum)
	}
	b = strconv.AppendInt(b, r.Count, 10)
	if r.Kind == Data {
		b = append(b, ' ')
		b = strconv.AppendInt(b, r.Host, 10)
	}
	return b
}

// Decode yields the runs of a stored fingerprint, which must have this header. What is not as
// [Encode] writes it is a [*DamageError]; it comes last, so that no run counts before the end
// has been reached without one.
func Decode(stored io.Reader, want Header) iter.Seq2[Run, error] {
	return func(yield func(Run, error) bool) {
		source := &sys.FailureReader{R: stored}
		z, err := zstd.NewReader(source, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(windowSize),
			zstd.WithDecoderLowmem(true))
		if err != nil {
			yield(Run{}, err)
			return
		}
		defer z.Close()
		d := decoder{text: bufio.NewReaderSize(z, 1<<16), want: want, yield: yield}
		err = d.all()
		switch {
		case d.stopped || err == nil:
		case source.Err != nil:
			yield(Run{}, fmt.Errorf("reading a stored cluster map: %w", source.Err))
		default:
			yield(Run{}, &DamageError{Line: d.line, Err: err})
		}
	}
}

// decoder accepts exactly what Encode writes.
type decoder struct {
	text    *bufio.Reader
	want    Header
	yield   func(Run, error) bool
	stopped bool
	line    int64
	runs    int64
	units   int64
	last    Run
}

func (d *decoder) all() error {
	head := fmt.Sprintf("%sunit %d\nunits %d\n", magicLine, d.want.Unit, d.want.Units)
	for _, want := range bytes.SplitAfter([]byte(head), []byte{'\n'})[:3] {
		line, err := d.next()
		if err != nil {
			return err
		}
		if !bytes.Equal(line, want) {
			return fmt.Errorf("%.60q instead of %q", line, want)
		}
	}
	for {
		line, err := d.next()
		if err != nil {
			return err
		}
		if line[0] == 'e' {
			return d.end(line)
		}
		r, err := d.run(line)
		if err != nil {
			return err
		}
		if !d.yield(r, nil) {
			d.stopped = true
			return nil
		}
	}
}

// run parses a run's line.
func (d *decoder) run(line []byte) (Run, error) {
	r, ok := parseRun(line[:len(line)-1])
	switch {
	case !ok:
		return r, fmt.Errorf("%.60q is no run", line)
	case r.Count > d.want.Units-d.units:
		return r, fmt.Errorf("more than %d units", d.want.Units)
	case d.last.joins(r, d.want.Unit):
		return r, fmt.Errorf("%.60q goes on with the run before it", line)
	}
	d.runs++
	d.units += r.Count
	d.last = r
	return r, nil
}

func (r *Run) joins(next Run, unit int64) bool {
	return r.Count > 0 && r.Kind == next.Kind && r.Kind != Mixed && (r.Kind != Data || r.Host+r.Count*unit == next.Host)
}

func (d *decoder) end(line []byte) error {
	if want := fmt.Sprintf("end %d\n", d.runs); string(line) != want || d.units != d.want.Units {
		return fmt.Errorf("%.60q behind %d runs of %d units", line, d.runs, d.units)
	}
	switch _, err := d.text.ReadByte(); {
	case err == nil:
		return errors.New("there is text behind the last line")
	case !errors.Is(err, io.EOF):
		return err
	}
	return nil
}

// next reads a line with its line feed; it is valid until the next call.
func (d *decoder) next() ([]byte, error) {
	d.line++
	line, err := d.text.ReadSlice('\n')
	switch {
	case err == nil && len(line) <= maxLine:
		return line, nil
	case err == nil, errors.Is(err, bufio.ErrBufferFull):
		return nil, errors.New("the line is too long")
	case errors.Is(err, io.EOF):
		return nil, errors.New("the text ends before its last line")
	}
	return nil, err
}

func parseRun(line []byte) (Run, bool) {
	if len(line) < 3 || line[1] != ' ' {
		return Run{}, false
	}
	r := Run{Kind: Kind(line[0])}
	rest := line[2:]
	var ok bool
	switch r.Kind {
	case Mixed:
		r.Count = 1
		r.Sum, ok = parseSum(rest)
	case Hole, Zero:
		r.Count, ok = parseNumber(rest)
	case Data:
		count, host, both := bytes.Cut(rest, []byte{' '})
		if !both {
			return r, false
		}
		if r.Count, ok = parseNumber(count); ok {
			r.Host, ok = parseNumber(host)
		}
	}
	return r, ok && r.Count > 0
}

// parseSum parses eight lower-case hex digits.
func parseSum(b []byte) (uint32, bool) {
	var n uint32
	for _, c := range b {
		switch {
		case '0' <= c && c <= '9':
			n = n<<4 | uint32(c-'0')
		case 'a' <= c && c <= 'f':
			n = n<<4 | uint32(c-'a'+10)
		default:
			return 0, false
		}
	}
	return n, len(b) == 8
}

// parseNumber parses a decimal number without leading zeros, at most 2⁶²−1, so that sums of two
// fit.
func parseNumber(b []byte) (int64, bool) {
	if len(b) == 0 || len(b) > 19 || b[0] == '0' && len(b) > 1 {
		return 0, false
	}
	var n uint64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	return int64(n), n < 1<<62
}
