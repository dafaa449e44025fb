// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/zstd"

	"github.com/imgbackup/imgbackup/crypt"
)

// The zstd frame format is RFC 8878.
const (
	frameMagic     = 0xFD2FB528
	skippableMagic = 0x184D2A50
	skippableHead  = 8
	maxBlock       = 128 << 10

	// maxText bounds the decoded length of any frame of ours.
	maxText = 2 << 20
	// maxStored bounds the length of any frame of ours, bytes.
	maxStored = maxText + 4096
	// maxFrame bounds the length of a chunk's frame, bytes: what does not
	// compress is stored as it is, with a few bytes per block.
	maxFrame = GridSize + 4096
	// bufSlack lets the decoder use its fast copies up to the end of a buffer.
	bufSlack = 64
)

var errFrame = errors.New("not a zstd frame as it is written here")

// frameExtent returns the length of the zstd frame at the start of b and the
// length of its content. The frame must state the latter, carry a checksum and
// use no dictionary. The content itself is not looked at.
func frameExtent(b []byte) (length int, content int64, err error) {
	if len(b) < 5 || binary.LittleEndian.Uint32(b) != frameMagic {
		return 0, 0, fmt.Errorf("%w: no zstd magic", errFrame)
	}
	desc := b[4]
	single := desc&0x20 != 0
	if desc&0x08 != 0 || desc&0x03 != 0 || desc&0x04 == 0 {
		return 0, 0, fmt.Errorf("%w: frame header descriptor %#02x", errFrame, desc)
	}
	pos, size := 5, 1<<(desc>>6)
	if !single {
		pos++
		if size == 1 {
			return 0, 0, fmt.Errorf("%w: content size is not stated", errFrame)
		}
	}
	if len(b) < pos+size {
		return 0, 0, fmt.Errorf("%w: cut short", errFrame)
	}
	var field [8]byte
	copy(field[:], b[pos:pos+size])
	u := binary.LittleEndian.Uint64(field[:])
	if size == 2 {
		u += 256
	}
	if u > maxText {
		return 0, 0, fmt.Errorf("%w: content of %d bytes", errFrame, u)
	}
	pos += size
	for last := false; !last; {
		if len(b) < pos+3 {
			return 0, 0, fmt.Errorf("%w: cut short", errFrame)
		}
		h := int(b[pos]) | int(b[pos+1])<<8 | int(b[pos+2])<<16
		pos += 3
		last = h&1 != 0
		switch h >> 1 & 3 {
		case 0, 2:
			pos += h >> 3
		case 1:
			pos++
		default:
			return 0, 0, fmt.Errorf("%w: reserved block type", errFrame)
		}
	}
	pos += 4
	if len(b) < pos {
		return 0, 0, fmt.Errorf("%w: cut short", errFrame)
	}
	return pos, int64(u), nil
}

// appendRawFrame appends a zstd frame that holds src uncompressed.
func appendRawFrame(dst, src []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, frameMagic)
	dst = append(dst, 0x80|0x20|0x04) // 4 bytes of content size, single segment, checksum
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(src)))
	sum := uint32(xxhash.Sum64(src))
	for {
		n := min(len(src), maxBlock)
		h := n << 3
		if n == len(src) {
			h |= 1
		}
		dst = append(dst, byte(h), byte(h>>8), byte(h>>16))
		dst = append(dst, src[:n]...)
		if src = src[n:]; len(src) == 0 {
			return binary.LittleEndian.AppendUint32(dst, sum)
		}
	}
}

func rawFrameLen(n int) int { return 9 + 3*max(1, (n+maxBlock-1)/maxBlock) + n + 4 }

// decoder decodes single frames. It is for one goroutine at a time.
type decoder struct {
	z    *zstd.Decoder
	keys *crypt.Keys // those under which what it decodes was stored; nil: none
}

func newDecoder() (*decoder, error) {
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(maxText), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		return nil, fmt.Errorf("zstd decoder: %w", err)
	}
	return &decoder{z: z}, nil
}

// newKeyedDecoder decodes what was stored under keys, nil being none.
func newKeyedDecoder(keys *crypt.Keys) (*decoder, error) {
	d, err := newDecoder()
	if err == nil {
		d.keys = keys
	}
	return d, err
}

func (d *decoder) close() { d.z.Close() }

// frame decodes exactly one frame of at most limit bytes of content into buf,
// which is replaced when it is too small.
func (d *decoder) frame(frame, buf []byte, limit int64) ([]byte, error) {
	n, content, err := frameExtent(frame)
	if err != nil {
		return nil, err
	}
	if n != len(frame) {
		return nil, fmt.Errorf("%w: %d bytes, of which the frame takes %d", errFrame, len(frame), n)
	}
	if content > limit {
		return nil, fmt.Errorf("%w: content of %d bytes, at most %d are allowed", errFrame, content, limit)
	}
	out, err := d.z.DecodeAll(frame, buf[:0])
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	if int64(len(out)) != content {
		return nil, fmt.Errorf("%w: decodes to %d bytes instead of %d", errFrame, len(out), content)
	}
	return out, nil
}

// chunk decodes a chunk's frame and proves it.
func (d *decoder) chunk(frame, buf []byte, want Digest) ([]byte, error) {
	out, err := d.frame(frame, buf, GridSize)
	if err != nil {
		return nil, err
	}
	if d.keys != nil {
		if !ProvesChunk(d.keys, out, want) {
			return nil, fmt.Errorf("chunk %s decodes to bytes with another keyed digest", want)
		}
		return out, nil
	}
	if got := Sum(out); got != want {
		return nil, fmt.Errorf("chunk %s decodes to bytes with SHA-256 %s", want, got)
	}
	return out, nil
}

// encoder makes frames. It is for one goroutine at a time.
type encoder struct {
	z      *zstd.Encoder // nil: store
	verify *decoder      // nil: do not
	buf    []byte
}

func newEncoder(level Level, verify bool) (*encoder, error) {
	e := &encoder{}
	var err error
	if level != LevelNone {
		e.z, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(level.encoderLevel()),
			zstd.WithWindowSize(GridSize), zstd.WithEncoderCRC(true), zstd.WithSingleSegment(true))
		if err != nil {
			return nil, fmt.Errorf("zstd encoder: %w", err)
		}
	}
	if verify {
		if e.verify, err = newDecoder(); err != nil {
			return nil, err
		}
		e.buf = make([]byte, 0, GridSize+bufSlack)
	}
	return e, nil
}

func (e *encoder) close() {
	if e.verify != nil {
		e.verify.close()
	}
	// An encoder that has only been used for EncodeAll holds nothing to close.
}

var errCompressor = errors.New("a compressed chunk did not decode to its data: a fault of the compressor or of this machine's memory")

// frame appends the frame of src, 1 to maxText bytes. With verify, the frame has
// been decoded again and gave src.
func (e *encoder) frame(dst, src []byte) ([]byte, error) {
	start := len(dst)
	if e.z != nil {
		dst = e.z.EncodeAll(src, dst)
	}
	if e.z == nil || len(dst)-start > rawFrameLen(len(src)) {
		dst = appendRawFrame(dst[:start], src)
	}
	if e.verify == nil {
		return dst, nil
	}
	out, err := e.verify.frame(dst[start:], e.buf, int64(len(src)))
	if err != nil {
		return dst, fmt.Errorf("%w: %w", errCompressor, err)
	}
	if !bytes.Equal(out, src) {
		return dst, errCompressor
	}
	return dst, nil
}

// appendSkippable appends the 8 bytes that begin a skippable frame of n bytes.
func appendSkippable(dst []byte, n int) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, skippableMagic)
	return binary.LittleEndian.AppendUint32(dst, uint32(n))
}

// skippable returns the content of the skippable frame that is all of b.
func skippable(b []byte) ([]byte, bool) {
	if len(b) < skippableHead || binary.LittleEndian.Uint32(b) != skippableMagic ||
		int64(binary.LittleEndian.Uint32(b[4:])) != int64(len(b)-skippableHead) {
		return nil, false
	}
	return b[skippableHead:], true
}
