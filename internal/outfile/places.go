// SPDX-License-Identifier: Apache-2.0

package outfile

import (
	"fmt"
	"slices"

	"github.com/imgbackup/imgbackup/internal/usage"
)

// Places are the targets of one run: no two of them are one file.
type Places struct {
	Kernel  *System
	Force   bool                    // see [Wanted]
	Outside func(path string) error // see [Wanted]; may be nil

	taken []taken
}

// taken is a place and what it is for.
type taken struct {
	what string
	at   *Place
}

// Add is [Resolve] for one more target. What it is for, as "disk vda", has one target
// only; the caller says it of an error, too.
func (ps *Places) Add(what string, w Wanted) (*Place, error) {
	w.Force, w.Outside = ps.Force, ps.Outside
	at, err := Resolve(ps.Kernel, w)
	if err != nil {
		return nil, err
	}
	for _, t := range ps.taken {
		if t.what == what {
			return nil, usage.Errorf("two targets are given for it")
		}
		if at.Same(t.at) {
			return nil, usage.Errorf("it and %s would both go to %s", t.what, at.Path)
		}
	}
	ps.taken = append(ps.taken, taken{what, at})
	return at, nil
}

// InPlaceLast sorts what is to be written: what goes wrong with new files leaves what
// would be written over as it was. at may be nil, which is in place.
func InPlaceLast[J any](jobs []J, at func(J) *Place) {
	inPlace := func(j J) int {
		if p := at(j); p != nil && !p.InPlace() {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(jobs, func(a, b J) int { return inPlace(a) - inPlace(b) })
}

// Amounts is what of a disk goes into an output, bytes.
type Amounts struct{ Data, Zero int64 }

// Add counts n more bytes.
func (a *Amounts) Add(n int64, zero bool) {
	if zero {
		a.Zero += n
	} else {
		a.Data += n
	}
}

// Demand is an output and how many bytes of data it is to get.
type Demand struct {
	Output *Output // nil: not a file
	Data   int64
}

// SpaceNotes says of each file system when its new files are to get more data than it
// has room for. That is no refusal: zeros within the data become holes, and a file
// system may compress. what may fail then is how a note ends: "the restore".
func SpaceNotes(what string, demands []Demand) []string {
	var notes []string
	need := make(map[uint64]int64)
	for _, d := range demands {
		if d.Output == nil {
			continue
		}
		id, folder, free, ok := d.Output.FreeSpace()
		if !ok {
			continue
		}
		before := need[id]
		need[id] += d.Data
		if before <= free && need[id] > free {
			notes = append(notes, fmt.Sprintf("%s has %d bytes free and up to %d are needed: %s may fail", folder, free, need[id], what))
		}
	}
	return notes
}
