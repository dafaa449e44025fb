// SPDX-License-Identifier: Apache-2.0

package record

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Name is what a record's UUID tells by itself, so that a listing alone shows when which
// checkpoint was drilled, and with what verdict. It is a UUID of version 8 (RFC 9562):
//
//	48 bits  when it began, milliseconds since 1970
//	 4       the version
//	 2       the verdict: 1 passed, 2 failed, 3 incomplete
//	1        some disks were left out
//	9        random
//	 2       the variant
//	14       random
//	48       the first bits of the checkpoint's UUID
//
// The record itself must agree.
type Name struct {
	UUID       string
	Begun      time.Time // to the millisecond
	Verdict    Verdict
	Partial    bool   // some disks were left out
	Checkpoint string // the first 12 digits of the checkpoint's UUID, without dashes

	whole string // the checkpoint's UUID, where it was proven: see [Proven]
}

// verdicts are those that names have, by their number.
func verdicts() []Verdict { return []Verdict{"", VerdictPassed, VerdictFailed, VerdictIncomplete} }

// digits are the first of a checkpoint's UUID that a name has.
func digits(checkpoint string) string {
	all := strings.ReplaceAll(checkpoint, "-", "")
	return all[:min(12, len(all))]
}

// NewName makes a name for a drill of all disks of the checkpoint with a UUID.
func NewName(begun time.Time, v Verdict, checkpoint string) (Name, error) {
	return newName(begun, v, false, checkpoint)
}

// NewPartialName is [NewName] of a drill that left some disks out.
func NewPartialName(begun time.Time, v Verdict, checkpoint string) (Name, error) {
	return newName(begun, v, true, checkpoint)
}

const partialBit = 2 // of the byte that has the verdict, too

func newName(begun time.Time, v Verdict, partial bool, checkpoint string) (Name, error) {
	half, err := hex.DecodeString(digits(checkpoint))
	n := slices.Index(verdicts(), v)
	if err != nil || len(half) != 6 || n < 1 || begun.UnixMilli() < 0 {
		return Name{}, fmt.Errorf("no record can be named after checkpoint %.40q, verdict %.40q, of %s", checkpoint, v, begun)
	}
	var id uuid.UUID
	if _, err := rand.Read(id[6:10]); err != nil {
		return Name{}, err
	}
	ms := uint64(begun.UnixMilli())
	for i := range 6 {
		id[i] = byte(ms >> (40 - 8*i))
	}
	id[6] = 0x80 | byte(n)<<2 | id[6]&1
	if partial {
		id[6] |= partialBit
	}
	id[8] = 0x80 | id[8]&0x3f
	copy(id[10:], half)
	return ParseName(id.String())
}

// ParseName takes a record's UUID apart.
func ParseName(s string) (n Name, err error) {
	id, err := uuid.Parse(s)
	if err != nil || id.String() != s || id.Version() != 8 || id.Variant() != uuid.RFC4122 {
		return n, fmt.Errorf("not the UUID of a drill's record: %.80q", s)
	}
	var ms uint64
	for i := range 6 {
		ms = ms<<8 | uint64(id[i])
	}
	n = Name{
		UUID: s, Begun: time.UnixMilli(int64(ms)).UTC(), Verdict: verdicts()[id[6]>>2&3],
		Partial: id[6]&partialBit != 0, Checkpoint: hex.EncodeToString(id[10:]),
	}
	if n.Verdict == "" || n.Begun.Year() > 9999 {
		return Name{}, fmt.Errorf("not the UUID of a drill's record: %.80q", s)
	}
	return n, nil
}

// Tells reports whether a drill by that name tells of the checkpoint as a whole: of all its
// disks, or that one of them cannot be restored.
func (n Name) Tells() bool { return !n.Partial || n.Verdict == VerdictFailed }

// Of reports whether the name is that of a drill of the checkpoint with a UUID.
func (n Name) Of(checkpoint string) bool {
	return n.Checkpoint == digits(checkpoint) && (n.whole == "" || n.whole == checkpoint)
}
