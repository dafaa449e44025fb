// SPDX-License-Identifier: Apache-2.0

package request

import (
	"fmt"
	"math"
	"strings"

	"github.com/dustin/go-humanize"
)

// ParseSize reads a size as qemu-img does: bytes, or a number with k, M, G, T or P, which
// are powers of 1024; with KiB and the like, too.
func ParseSize(text string) (int64, error) {
	n, err := humanize.ParseBytes(binarySize(text))
	if err != nil || n > math.MaxInt64 {
		return 0, fmt.Errorf("%q is not a size: want bytes, or a number with k, M, G or T", text)
	}
	return int64(n), nil
}

// binarySize makes QEMU's 64k of what would be 64000 bytes elsewhere.
func binarySize(s string) string {
	if s != "" && strings.ContainsAny(s[len(s)-1:], "kKmMgGtTpP") {
		return s + "iB"
	}
	return s
}
