// SPDX-License-Identifier: Apache-2.0

package request

import (
	"github.com/dustin/go-humanize"

	"github.com/imgbackup/imgbackup/internal/usage"
)

// maxRate bounds what can be meant as a rate, bytes per second.
const maxRate = 1 << 50

// ParseRate reads the value of --limit-rate: bytes per second, as 50M or 200MiB.
func ParseRate(value string) (int64, error) {
	n, err := humanize.ParseBytes(value)
	if err != nil || n == 0 || n > maxRate {
		return 0, usage.Errorf("--limit-rate %q: want bytes per second, as 50M or 200MiB", value)
	}
	return int64(n), nil
}
