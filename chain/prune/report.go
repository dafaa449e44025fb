// SPDX-License-Identifier: Apache-2.0

package prune

import (
	"cmp"
	"slices"
)

// Amount is a number of objects of one kind, and their bytes.
type Amount struct {
	Kind    string `json:"kind"` // packs, maps, bitmaps, files, indexes, and the like; probes
	Objects int64  `json:"objects"`
	Bytes   int64  `json:"bytes"`
}

// Amounts are amounts of several kinds, sorted by their names; kinds of which there is
// nothing are left out.
type Amounts []Amount

func (a *Amounts) add(kind string, objects, bytes int64) {
	i, ok := slices.BinarySearchFunc(*a, kind, func(x Amount, kind string) int { return cmp.Compare(x.Kind, kind) })
	if !ok {
		*a = slices.Insert(*a, i, Amount{Kind: kind})
	}
	(*a)[i].Objects += objects
	(*a)[i].Bytes += bytes
}

// Total sums up all kinds.
func (a Amounts) Total() (t Amount) {
	for _, x := range a {
		t.Objects += x.Objects
		t.Bytes += x.Bytes
	}
	return t
}

// Repack tells of packs that are partly unused.
type Repack struct {
	Packs int64 `json:"packs"` // that are, or were, emptied
	Bytes int64 `json:"bytes"` // their length
	Moves int64 `json:"moved_bytes"`
	Frees int64 `json:"freed_bytes"` // about what that wins, once the old packs are deleted
	// Unused is what stays unused in packs that are partly used, bytes.
	Unused int64 `json:"unused_bytes"`
}

// Summary is what a plan says: what will be won.
type Summary struct {
	Checkpoints int     `json:"checkpoints"`
	Kept        Amounts `json:"kept"`   // that checkpoints need, or that are of use
	Remove      Amounts `json:"remove"` // that nothing needs
	Repack      Repack  `json:"repack"`
	Indexes     Merge   `json:"indexes"`
}

// Merge tells of indexes.
type Merge struct {
	From int `json:"merged_from"`
	To   int `json:"merged_to"`
}

// Waiting is a run that has to end before what was marked can be deleted.
type Waiting struct {
	UUID    string `json:"uuid"`
	Host    string `json:"host"`
	Purpose string `json:"purpose"`
}

// Result is what a prune did.
type Result struct {
	DryRun  bool     `json:"dry_run"`
	Plan    *Summary `json:"plan,omitempty"` // nil: it did not get so far
	Removed Amounts  `json:"removed"`
	// Resumed is what of it an earlier prune had marked, which had ended.
	Resumed Amounts `json:"resumed"`
	Repack  Repack  `json:"repacked"`
	Indexes Merge   `json:"indexes"`
	// Freed is what was won: what was deleted, without what has moved to new packs, bytes.
	Freed int64 `json:"freed_bytes"`
	// Left is marked, and waits for the runs in Waiting: the next prune goes on.
	Left    Amounts   `json:"left"`
	Waiting []Waiting `json:"waiting"`
	// Unanswered says that requests to delete may still arrive at the store: the mark
	// stands, and the next prune ends it.
	Unanswered bool `json:"unanswered"`
	// VersionsKept says that the store keeps what was deleted as older versions: no space is
	// free until these expire.
	VersionsKept bool `json:"versions_kept"`
}
