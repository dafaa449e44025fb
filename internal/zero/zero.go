// SPDX-License-Identifier: Apache-2.0

// Package zero tells zeros from data.
package zero

import "encoding/binary"

// Is reports whether all bytes are zero. No bytes are.
func Is(b []byte) bool {
	for len(b) >= 32 {
		if binary.NativeEndian.Uint64(b)|binary.NativeEndian.Uint64(b[8:])|
			binary.NativeEndian.Uint64(b[16:])|binary.NativeEndian.Uint64(b[24:]) != 0 {
			return false
		}
		b = b[32:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
