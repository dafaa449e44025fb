// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"fmt"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
)

// Verdict is what a [Judge] found out about a disk's bitmaps.
type Verdict struct {
	// Trusted says that Dirty is all that may have changed since Base. The fields
	// below it are set only then.
	Trusted bool
	Base    chain.DiskState
	Dirty   bitmapstore.Runs
	Alone   bool // the bitmap that Base added alone is Dirty

	Code   Reason
	Reason string // for people

	// OlderThan is a checkpoint that the image has been taken back behind, as by a
	// copy that was put back; empty: none is known.
	OlderThan string

	// Accused is the bitmap that an archive or another bitmap spoke against, if it could
	// otherwise have told the changes; nil: there is none.
	Accused *Accused

	// NeverBitmaps says that the image's format is one without bitmaps.
	NeverBitmaps bool
	// DistrustAll says that every earlier bitmap of ours in the image is
	// worthless, since one of two that contradict each other lies.
	DistrustAll bool
}

// Accused is a bitmap that is not believed.
type Accused struct {
	State chain.DiskState // whose bitmap it is; its data was archived
	Dirty bitmapstore.Runs
}

// Objection is a reason not to believe a bitmap.
type Objection struct {
	Code   Reason
	Reason string // for people
	All    bool   // it speaks against every bitmap of the image
	Never  bool   // images of this format never have bitmaps

	accused *Accused
}

func object(code Reason, format string, args ...any) *Objection {
	return &Objection{Code: code, Reason: fmt.Sprintf(format, args...)}
}

// objectAll objects to every bitmap of the image.
func objectAll(code Reason, format string, args ...any) *Objection {
	o := object(code, format, args...)
	o.All = true
	return o
}

// objectForm objects to the image's format.
func objectForm(code Reason, format string, args ...any) *Objection {
	o := object(code, format, args...)
	o.Never = true
	return o
}

// verdict is what an objection comes to.
func (o *Objection) verdict() Verdict {
	return Verdict{Code: o.Code, Reason: o.Reason, DistrustAll: o.All, NeverBitmaps: o.Never, Accused: o.accused}
}
