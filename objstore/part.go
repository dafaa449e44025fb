// SPDX-License-Identifier: Apache-2.0

package objstore

import "strings"

const hexDigits = "0123456789ABCDEF"

// EncodePart returns the part of a key that stands for any text: bytes other than
// [A-Za-z0-9_.-], and a dot at the beginning, become %XX with upper-case hex digits.
func EncodePart(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; plainByte(c) && (c != '.' || i > 0) {
			b.WriteByte(c)
		} else {
			b.WriteByte('%')
			b.WriteByte(hexDigits[c>>4])
			b.WriteByte(hexDigits[c&15])
		}
	}
	return b.String()
}

func plainByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '.' || c == '-'
}

// DecodePart is the reverse of EncodePart; false: that does not write this.
func DecodePart(part string) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(part); i++ {
		c := part[i]
		if c == '%' {
			if i+2 >= len(part) {
				return "", false
			}
			hi, lo := strings.IndexByte(hexDigits, part[i+1]), strings.IndexByte(hexDigits, part[i+2])
			if hi < 0 || lo < 0 {
				return "", false
			}
			c = byte(hi<<4 | lo)
			i += 2
		}
		b.WriteByte(c)
	}
	s := b.String()
	return s, s != "" && EncodePart(s) == part
}
