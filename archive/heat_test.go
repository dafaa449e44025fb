// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// Every byte is counted once, in the part that has it, whatever the disk's size is.
func TestHeatCounts(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.OneOf(rapid.Int64Range(1, 1000), rapid.Int64Range(1, math.MaxInt64)).Draw(t, "size")
		var h Heat
		var total, off int64
		for range rapid.IntRange(1, 10).Draw(t, "ranges") {
			off += rapid.Int64Range(0, (size-off)/2).Draw(t, "gap")
			n := rapid.Int64Range(0, size-off).Draw(t, "length")
			h.add(off, n, size)
			off, total = off+n, total+n
		}
		var sum int64
		for i, n := range h {
			if part := partStart(i+1, size) - partStart(i, size); n < 0 || n > part {
				t.Fatalf("part %d has %d of %d bytes", i, n, part)
			}
			sum += n
		}
		if sum != total {
			t.Fatalf("%d bytes are counted of %d", sum, total)
		}
		if text := h.Text(size); (strings.Trim(text, "0") == "") != (total == 0) || len(text) != HeatParts {
			t.Fatalf("%q of %d bytes", text, total)
		}
	})
}

func TestHeatText(t *testing.T) {
	t.Parallel()
	const part = 1600
	var h Heat
	h.add(0, part, part*HeatParts)          // a whole one
	h.add(part, 1, part*HeatParts)          // a byte
	h.add(2*part+800, part, part*HeatParts) // halves of two
	h.add(63*part, 1499, part*HeatParts)
	if got, want := h.Text(part*HeatParts), "f188"+strings.Repeat("0", 59)+"e"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
