// SPDX-License-Identifier: Apache-2.0

package virtnbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/pierrec/lz4/v4"
)

// contentSize is how much an LZ4 frame says in its head that it decodes to, bytes; -1: it does
// not say. b is its beginning, at least 14 bytes if it has so many.
func contentSize(b []byte) (int64, error) {
	const magic, hasSize = 0x184d2204, 1 << 3
	if len(b) < 7 || binary.LittleEndian.Uint32(b) != magic {
		return 0, errors.New("no LZ4 frame begins here")
	}
	if b[4]&hasSize == 0 {
		return -1, nil
	}
	if len(b) < 14 {
		return 0, errors.New("the LZ4 frame is too short")
	}
	n := binary.LittleEndian.Uint64(b[6:])
	if n > maxChunk {
		return 0, fmt.Errorf("an LZ4 frame of %d bytes, where %d are the most", n, maxChunk)
	}
	return int64(n), nil
}

// decode decodes an LZ4 frame of a chunk, which has to hold exactly what the chunk is for.
func decode(r io.ReaderAt, c chunk) ([]byte, error) {
	z := lz4.NewReader(io.NewSectionReader(r, c.at, int64(c.stored)))
	out := make([]byte, c.length)
	if _, err := io.ReadFull(z, out); err != nil {
		return nil, fmt.Errorf("LZ4 frame at byte %d: it does not hold the %d bytes that it is for: %w", c.at, c.length, unexpected(err))
	}
	var more [1]byte
	switch n, err := z.Read(more[:]); {
	case n > 0:
		return nil, fmt.Errorf("LZ4 frame at byte %d: it holds more than the %d bytes that it is for", c.at, c.length)
	case err != nil && !errors.Is(err, io.EOF):
		return nil, fmt.Errorf("LZ4 frame at byte %d: %w", c.at, err)
	}
	return out, nil
}

// unexpected makes an end that came too early one that nobody takes for the end.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
