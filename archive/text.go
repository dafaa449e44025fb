// SPDX-License-Identifier: Apache-2.0

package archive

import "encoding/hex"

const hexLen = 64

// Stored lines have fields of fixed width: numbers are decimal with leading zeros,
// digests are 64 lower-case hex digits, so that dd and awk can find their way.

// putDec writes v ≥ 0 into all of dst. It reports false when v has too many digits.
func putDec(dst []byte, v int64) bool {
	for i := len(dst) - 1; i >= 0; i-- {
		dst[i] = byte('0' + v%10)
		v /= 10
	}
	return v == 0
}

// parseDec reads the digits that fill src, at most 19. ok is false when a byte is
// no digit or the number passes 1<<63-1.
func parseDec(src []byte) (v int64, ok bool) {
	var u uint64
	for _, c := range src {
		c -= '0'
		if c > 9 {
			return 0, false
		}
		u = u*10 + uint64(c)
	}
	return int64(u), int64(u) >= 0 && len(src) <= 19
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

// parseHex reads 64 lower-case hex digits.
func parseHex(d *Digest, src []byte) bool {
	_ = src[hexLen-1]
	var bad byte
	for i := range d {
		h, l := hexValue[src[2*i]], hexValue[src[2*i+1]]
		bad |= h | l
		d[i] = h<<4 | l
	}
	return bad < 0x10
}
