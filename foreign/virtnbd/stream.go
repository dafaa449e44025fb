// SPDX-License-Identifier: Apache-2.0

package virtnbd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// Bounds of what a stream may hold.
const (
	maxMeta       = 1 << 20   // bytes of JSON about it
	maxTrailer    = 128 << 20 // bytes of the JSON that has the lengths of what was compressed
	maxFrames     = 4 << 20   // data frames of a stream, and the LZ4 frames in them
	maxDiskFrames = 8 << 20   // of all streams of a disk
	maxChunk      = 64 << 20  // bytes that one LZ4 frame decodes to; the program makes 32 MiB
	maxDisk       = 1 << 60   // bytes of a disk
)

// Meta is what a stream says of itself.
type Meta struct {
	Disk        string // its name, as vda
	Format      string // of the image that was backed up
	Size        int64  // virtual, bytes
	Date        string // when it was made, by the clock of its host, without a zone
	Checkpoint  string // that was made with it
	Parent      string // since which it is incremental; empty: it is none
	Incremental bool
	Compressed  bool
}

// frame is a data frame.
type frame struct {
	start, length int64 // of the disk, bytes
	at            int64 // where its bytes lie in the file, or the first of its chunks, if it is compressed
}

func (f *frame) end() int64 { return f.start + f.length }

// chunk is one LZ4 frame of a data frame.
type chunk struct {
	at     int64 // in the file
	stored int32 // bytes there
	length int32 // bytes of the disk
}

// stream is the index of one.
type stream struct {
	Meta
	frames []frame // ascending, none overlaps another
	chunks []chunk // of a compressed one, in their order
}

// badStream says what is wrong with a stream, and where.
type badStream struct {
	at   int64
	what string
}

func (e *badStream) Error() string { return fmt.Sprintf("at byte %d: %s", e.at, e.what) }

func bad(at int64, format string, args ...any) error {
	return &badStream{at, fmt.Sprintf(format, args...)}
}

// head is the head of a frame.
type head struct {
	kind          string
	start, length int64
}

const headLen = 40

var lineEnd = []byte("\r\n")

func parseHead(b []byte) (h head, ok bool) {
	if len(b) != headLen || b[4] != ' ' || b[21] != ' ' || !bytes.Equal(b[38:], lineEnd) {
		return head{}, false
	}
	start, err1 := strconv.ParseUint(string(b[5:21]), 16, 63)
	length, err2 := strconv.ParseUint(string(b[22:38]), 16, 63)
	return head{string(b[:4]), int64(start), int64(length)}, err1 == nil && err2 == nil
}

// begins reports whether a file begins as a stream does.
func begins(r io.ReaderAt) (bool, error) {
	b := make([]byte, headLen)
	n, err := r.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	h, ok := parseHead(b[:n])
	return ok && h.kind == "meta", nil
}

// parser reads a stream's frames, one after the other.
type parser struct {
	r     io.ReaderAt
	size  int64 // of the file
	at    int64
	s     *stream
	sizes []stored // of a compressed stream: a list for each data frame
	next  int      // of them
	end   int64    // where frames have to end
}

// stored are the lengths of the LZ4 frames of one data frame.
type stored []int32

// parse reads the index of a stream of size bytes, and proves its form. Data is not read.
func parse(r io.ReaderAt, size int64) (*stream, error) {
	p := &parser{r: r, size: size, s: new(stream), end: size}
	total, err := p.meta()
	if err != nil {
		return nil, err
	}
	if p.s.Compressed {
		if err := p.trailer(); err != nil {
			return nil, err
		}
	}
	var data, reached int64
	for {
		h, err := p.head()
		if err != nil {
			return nil, err
		}
		if h.kind == "stop" {
			return p.s, p.stop(data, total)
		}
		if h.start < reached || h.length > p.s.Size-h.start {
			return nil, bad(p.at-headLen, "the frame %q of %d bytes at %d of the disk overlaps another, or is not within the disk of %d bytes", h.kind, h.length, h.start, p.s.Size)
		}
		reached = h.start + h.length
		switch h.kind {
		case "zero":
		case "data":
			data += h.length
			if err := p.data(h); err != nil {
				return nil, err
			}
		default:
			return nil, bad(p.at-headLen, "a frame of the unknown kind %q", h.kind)
		}
	}
}

// read fills b from where the parser is.
func (p *parser) read(b []byte, what string) error {
	if int64(len(b)) > p.end-p.at {
		return bad(p.at, "it ends within %s: it has %d bytes", what, p.end)
	}
	if _, err := p.r.ReadAt(b, p.at); err != nil {
		if errors.Is(err, io.EOF) {
			return bad(p.at, "it ends within %s", what)
		}
		return err
	}
	p.at += int64(len(b))
	return nil
}

func (p *parser) head() (head, error) {
	var b [headLen]byte
	if err := p.read(b[:], "the head of a frame"); err != nil {
		return head{}, err
	}
	h, ok := parseHead(b[:])
	if !ok {
		return head{}, bad(p.at-headLen, "no frame begins here: %q", b)
	}
	return h, nil
}

func (p *parser) lineEnd() error {
	var b [2]byte
	if err := p.read(b[:], "the end of a frame"); err != nil {
		return err
	}
	if !bytes.Equal(b[:], lineEnd) {
		return bad(p.at-2, "a frame does not end here: %q", b)
	}
	return nil
}

// metaJSON is the JSON of the first frame. What is compressed and what is its parent have several
// types, by version.
type metaJSON struct {
	VirtualSize      *int64 `json:"virtualSize"`
	DataSize         int64  `json:"dataSize"`
	Date             string `json:"date"`
	DiskName         string `json:"diskName"`
	DiskFormat       string `json:"diskFormat"`
	CheckpointName   any    `json:"checkpointName"`
	ParentCheckpoint any    `json:"parentCheckpoint"`
	Incremental      bool   `json:"incremental"`
	Compressed       any    `json:"compressed"`
	Method           string `json:"compressionMethod"`
	StreamVersion    int64  `json:"streamVersion"`
}

// streamVersions is the newest version that is known.
const streamVersions = 2

// meta reads the first frame, and returns how much data the stream says that it has.
func (p *parser) meta() (int64, error) {
	h, err := p.head()
	if err != nil {
		return 0, err
	}
	if h.kind != "meta" || h.length > maxMeta {
		return 0, bad(0, "it does not begin with a frame that describes it")
	}
	text := make([]byte, h.length)
	if err := p.read(text, "its description"); err != nil {
		return 0, err
	}
	var j metaJSON
	if err := json.Unmarshal(text, &j); err != nil {
		return 0, bad(headLen, "its description: %v", err)
	}
	name := func(v any) string { s, _ := v.(string); return s }
	p.s.Meta = Meta{
		Disk: j.DiskName, Format: j.DiskFormat, Date: j.Date, Incremental: j.Incremental,
		Checkpoint: name(j.CheckpointName), Parent: name(j.ParentCheckpoint),
	}
	switch c := j.Compressed.(type) {
	case bool:
		p.s.Compressed = c
	case float64: // the level
		p.s.Compressed = true
	}
	switch {
	case j.StreamVersion > streamVersions:
		return 0, bad(headLen, "it is of version %d, and %d is the newest that is known", j.StreamVersion, streamVersions)
	case j.VirtualSize == nil || *j.VirtualSize < 0 || *j.VirtualSize > maxDisk:
		return 0, bad(headLen, "its description has no size of a disk")
	case p.s.Compressed && j.Method != "lz4":
		return 0, bad(headLen, "it is compressed by %.40q, and only lz4 is known", j.Method)
	case j.DiskName == "":
		return 0, bad(headLen, "its description names no disk")
	}
	p.s.Size = *j.VirtualSize
	return j.DataSize, p.lineEnd()
}

// trailer reads the lengths at the end of a compressed stream.
func (p *parser) trailer() error {
	var b [headLen]byte
	at := p.size - headLen
	if at < p.at {
		return bad(p.at, "it ends before the lengths of what is compressed")
	}
	if _, err := p.r.ReadAt(b[:], at); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	h, ok := parseHead(b[:])
	begin := at - 2 - h.length
	if !ok || h.kind != "comp" || h.length > maxTrailer || begin < p.at {
		return bad(at, "the lengths of what is compressed do not end here")
	}
	var end [2]byte
	if _, err := p.r.ReadAt(end[:], at-2); err != nil || !bytes.Equal(end[:], lineEnd) {
		return bad(at-2, "the lengths of what is compressed do not end here")
	}
	sizes, err := readSizes(io.NewSectionReader(p.r, begin, h.length), maxFrames)
	if err != nil {
		return bad(begin, "the lengths of what is compressed: %v", err)
	}
	p.sizes, p.end = sizes, begin
	return nil
}

// readSizes decodes the lengths, as they come: there may be many, and no more than most.
func readSizes(r io.Reader, most int) ([]stored, error) {
	d := json.NewDecoder(r)
	if err := expect(d, json.Delim('[')); err != nil {
		return nil, err
	}
	var all []stored
	total := 0
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		var one stored
		switch v := t.(type) {
		case float64:
			n, err := storedLength(v)
			if err != nil {
				return nil, err
			}
			one = stored{n}
		case json.Delim:
			if v != '{' {
				return nil, fmt.Errorf("entry %d is no length", len(all))
			}
			if one, err = readList(d); err != nil {
				return nil, err
			}
		default:
			return nil, fmt.Errorf("entry %d is no length", len(all))
		}
		if total += max(1, len(one)); total > most { // an empty list takes memory, too
			return nil, fmt.Errorf("more than %d", most)
		}
		all = append(all, one)
	}
	if err := expect(d, json.Delim(']')); err != nil {
		return nil, err
	}
	if d.More() {
		return nil, errors.New("something follows them")
	}
	return all, nil
}

// readList decodes the rest of an object whose one member is a list of lengths.
func readList(d *json.Decoder) (stored, error) {
	if _, err := d.Token(); err != nil { // its name, which is their sum
		return nil, err
	}
	if err := expect(d, json.Delim('[')); err != nil {
		return nil, err
	}
	var list stored
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		v, ok := t.(float64)
		if !ok {
			return nil, fmt.Errorf("%v is no length", t)
		}
		n, err := storedLength(v)
		if err != nil {
			return nil, err
		}
		if list = append(list, n); len(list) > maxFrames {
			return nil, fmt.Errorf("more than %d", maxFrames)
		}
	}
	if err := expect(d, json.Delim(']')); err != nil {
		return nil, err
	}
	return list, expect(d, json.Delim('}'))
}

func expect(d *json.Decoder, want json.Delim) error {
	t, err := d.Token()
	if err == nil && t != want {
		err = fmt.Errorf("%v in place of %v", t, want)
	}
	return err
}

// storedLength takes the length of an LZ4 frame, which is hardly longer than what it decodes to.
func storedLength(v float64) (int32, error) {
	n := int32(v)
	if v < 1 || v > maxChunk+maxChunk/64 || float64(n) != v {
		return 0, fmt.Errorf("%v is no length of an LZ4 frame", v)
	}
	return n, nil
}

// data takes a data frame.
func (p *parser) data(h head) error {
	if len(p.s.frames) == maxFrames {
		return bad(p.at-headLen, "it has more than %d data frames", maxFrames)
	}
	f := frame{start: h.start, length: h.length, at: p.at}
	stored := h.length
	if p.s.Compressed {
		f.at = int64(len(p.s.chunks))
		var err error
		if stored, err = p.compressed(&f); err != nil {
			return err
		}
	}
	if h.length == 0 {
		return p.lineEnd()
	}
	if stored > p.end-p.at {
		return bad(p.at, "it ends within the %d bytes of a data frame: it has %d bytes", stored, p.end)
	}
	p.at += stored
	p.s.frames = append(p.s.frames, f)
	return p.lineEnd()
}

// compressed finds the LZ4 frames of a data frame, which begin where the parser is, and returns
// how many bytes they have.
func (p *parser) compressed(f *frame) (int64, error) {
	if p.next == len(p.sizes) {
		return 0, bad(p.at, "the lengths of what is compressed are fewer than its data frames")
	}
	sizes := p.sizes[p.next]
	p.next++
	left, at := f.length, p.at
	for i, n := range sizes {
		length := left
		if len(sizes) > 1 {
			var err error
			if length, err = p.chunkLength(at, n, left, i == len(sizes)-1); err != nil {
				return 0, err
			}
		}
		if length > maxChunk || length > left {
			return 0, bad(at, "an LZ4 frame for %d bytes of the disk, where %d are wanted and %d are the most", length, left, maxChunk)
		}
		p.s.chunks = append(p.s.chunks, chunk{at: at, stored: n, length: int32(length)})
		left, at = left-length, at+int64(n)
	}
	if left != 0 {
		return 0, bad(p.at, "the LZ4 frames of a data frame have %d bytes too few", left)
	}
	return at - p.at, nil
}

// requestSize is how much the program asks for at once, where an LZ4 frame does not say how much
// it holds.
const requestSize = 32 << 20

// chunkLength is how many bytes of the disk one of several LZ4 frames holds, as its head says.
func (p *parser) chunkLength(at int64, stored int32, left int64, last bool) (int64, error) {
	b := make([]byte, min(14, int(stored)))
	if int64(stored) > p.end-at {
		return 0, bad(at, "it ends within an LZ4 frame")
	}
	if _, err := p.r.ReadAt(b, at); err != nil {
		return 0, err
	}
	length, err := contentSize(b)
	switch {
	case err != nil:
		return 0, bad(at, "%v", err)
	case length >= 0:
		return length, nil
	case last:
		return left, nil
	}
	return min(left, requestSize), nil
}

// stop proves the end.
func (p *parser) stop(data, total int64) error {
	switch {
	case p.at != p.end:
		return bad(p.at, "%d bytes follow its last frame", p.end-p.at)
	case p.next != len(p.sizes):
		return bad(p.at, "it has %d data frames, and lengths of %d", p.next, len(p.sizes))
	case data != total:
		return bad(p.at, "it has %d bytes of data, and says that they are %d", data, total)
	}
	return nil
}
