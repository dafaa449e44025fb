// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"math/bits"
	"strings"
)

// HeatParts is into how many parts of equal size a disk is divided to tell where it changes.
const HeatParts = 64

// Heat is how many bytes of each part of a disk changed.
type Heat [HeatParts]int64

// add counts n bytes at off of a disk of size bytes.
func (h *Heat) add(off, n, size int64) {
	if n <= 0 {
		return
	}
	for i := partOf(off, size); n > 0 && i < HeatParts; i++ {
		here := min(n, partStart(i+1, size)-off)
		h[i] += here
		off, n = off+here, n-here
	}
}

// partStart is where a part of a disk begins; that of part HeatParts is size.
func partStart(i int, size int64) int64 { return mulDiv(size, int64(i), HeatParts) }

// partOf is the part that has the byte at off.
func partOf(off, size int64) int {
	i := int(mulDiv(off, HeatParts, size))
	for i+1 < HeatParts && partStart(i+1, size) <= off {
		i++
	}
	return i
}

// mulDiv is a*b/c, for 0 <= a <= c or b <= c, without overflow.
func mulDiv(a, b, c int64) int64 {
	hi, lo := bits.Mul64(uint64(a), uint64(b))
	q, _ := bits.Div64(hi, lo, uint64(c))
	return int64(q)
}

// Text is a hex digit for each part of a disk of size bytes: 0 where nothing changed, else
// how many sixteenths of it did, from 1 to 15.
func (h *Heat) Text(size int64) string {
	var b strings.Builder
	for i, n := range h {
		part := partStart(i+1, size) - partStart(i, size)
		if n <= 0 || part == 0 {
			b.WriteByte('0')
			continue
		}
		b.WriteByte("0123456789abcdef"[max(1, min(mulDiv(min(n, part), 16, part), 15))])
	}
	return b.String()
}
