// SPDX-License-Identifier: Apache-2.0

package prune

import (
	"errors"
	"math"
	"strconv"
	"strings"
)

// Limit bounds how much may stay unused in packs that are partly used.
type Limit struct {
	Unlimited bool
	Share     float64 // of what the packs hold, 0 to 1; counts if Bytes is 0
	Bytes     int64
}

// DefaultUnused is the Limit of who gives none.
var DefaultUnused = Limit{Share: 0.05}

// of returns the limit in bytes, of packs that hold total.
func (l Limit) of(total int64) int64 {
	switch {
	case l.Unlimited:
		return math.MaxInt64
	case l.Share > 0:
		return int64(l.Share * float64(total))
	}
	return l.Bytes
}

var errLimit = errors.New("want a share as 5%, a size as 10G, or unlimited")

// ParseLimit reads a limit: a share as 5% or 0.5%, a size as parseSize reads it, or the
// word unlimited.
func ParseLimit(text string, parseSize func(string) (int64, error)) (Limit, error) {
	if text == "unlimited" {
		return Limit{Unlimited: true}, nil
	}
	if number, ok := strings.CutSuffix(text, "%"); ok {
		share, err := strconv.ParseFloat(number, 64)
		if err != nil || !(share >= 0 && share < 100) || strings.ContainsAny(number, "+-xXpP_eE") {
			return Limit{}, errLimit
		}
		return Limit{Share: share / 100}, nil
	}
	bytes, err := parseSize(text)
	if err != nil || bytes < 0 {
		return Limit{}, errLimit
	}
	return Limit{Bytes: bytes}, nil
}
