// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// Level says how hard chunks are compressed. The zero value is LevelFastest.
type Level int

// The levels. At LevelNone chunks are stored as they are, in valid zstd frames.
const (
	LevelFastest Level = iota
	LevelDefault
	LevelBetter
	LevelBest
	LevelNone
)

// LevelNames lists what [ParseLevel] reads, for usage messages.
const LevelNames = "none, fastest, default, better, best, or 0 to 4"

// ParseLevel reads a level by name (none, fastest, default, better, best) or
// number (0 to 4, in that order).
func ParseLevel(s string) (Level, error) {
	switch s {
	case "none", "0":
		return LevelNone, nil
	case "fastest", "1", "":
		return LevelFastest, nil
	case "default", "2":
		return LevelDefault, nil
	case "better", "3":
		return LevelBetter, nil
	case "best", "4":
		return LevelBest, nil
	}
	return 0, fmt.Errorf("unknown compression level %.40q (one of %s)", s, LevelNames)
}

func (l Level) encoderLevel() zstd.EncoderLevel {
	switch l {
	case LevelDefault:
		return zstd.SpeedDefault
	case LevelBetter:
		return zstd.SpeedBetterCompression
	case LevelBest:
		return zstd.SpeedBestCompression
	}
	return zstd.SpeedFastest
}
