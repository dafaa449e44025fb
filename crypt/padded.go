// SPDX-License-Identifier: Apache-2.0

package crypt

import "math/bits"

// Padded is the length to which n bytes are padded, by Padmé: of the digits of n only as
// many as it takes to write their number are kept, the others being 0. It is at most
// 12 percent more than n, the less the larger n is.
func Padded(n int) int {
	if n < 2 {
		return n
	}
	e := bits.Len(uint(n)) - 1
	last := e - bits.Len(uint(e))
	if last < 0 {
		return n
	}
	mask := 1<<last - 1
	return (n + mask) &^ mask
}
