// SPDX-License-Identifier: Apache-2.0

package qcow2

// Kind says what a range of a disk is made of.
type Kind uint8

// The kinds.
const (
	Hole       Kind = iota // allocated nowhere: reads as zeros
	Zero                   // allocated and known to read as zeros
	Data                   // guest data
	Compressed             // guest data in compressed clusters
)

func (k Kind) String() string {
	switch k {
	case Hole:
		return "hole"
	case Zero:
		return "zero"
	case Data:
		return "data"
	case Compressed:
		return "compressed"
	}
	return "unknown"
}

// Extent is a range of a disk that is of one kind.
type Extent struct {
	Offset, Length int64 // guest bytes
	Kind           Kind
	Layer          int // index in Chain.Layers; -1 for a hole
}
