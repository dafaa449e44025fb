// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"errors"
	"testing"
)

// A slice is that of the chunk, or damage that says where it is.
func TestSliceOfAChunk(t *testing.T) {
	t.Parallel()
	chunk := []byte("0123456789")
	for _, c := range []struct {
		offset int32
		length int64
		want   string
	}{
		{0, 10, "0123456789"}, {3, 4, "3456"}, {10, 0, ""}, {9, 1, "9"},
		{0, 11, "!"}, {9, 2, "!"}, {11, 0, "!"}, {-1, 2, "!"}, {2, -1, "!"}, {1 << 30, 1 << 62, "!"},
	} {
		e := Entry{ChunkOffset: c.offset, Length: c.length, FrameOffset: 77, FrameLength: 5}
		got, err := e.In(chunk)
		if c.want != "!" {
			if err != nil || !bytes.Equal(got, []byte(c.want)) {
				t.Errorf("%d bytes at %d: %q, %v", c.length, c.offset, got, err)
			}
			continue
		}
		var damage *DamageError
		if !errors.As(err, &damage) || damage.Offset != 77 || damage.Length != 5 || damage.Object != PackKey(Digest{}) {
			t.Errorf("%d bytes at %d: %q, %v", c.length, c.offset, got, err)
		}
	}
}
