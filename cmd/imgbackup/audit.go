// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/imgbackup/imgbackup/backup"
)

// auditJSON is what an audit adds to a disk.
type auditJSON struct {
	Audited     string       `json:"audited,omitempty"` // the bitmap; empty: there is none
	Missed      []missedJSON `json:"missed"`
	MissedBytes int64        `json:"missed_bytes"`
	MissedMore  bool         `json:"missed_more,omitempty"`
}

type missedJSON struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// addAudits adds the outcomes of audits to the disks.
func addAudits(out *backupJSON, audits []backup.Audit) {
	for i, a := range audits {
		v := &auditJSON{Audited: a.Bitmap, Missed: []missedJSON{}, MissedBytes: a.Bytes, MissedMore: a.More}
		for _, r := range a.Missed {
			v.Missed = append(v.Missed, missedJSON{r.Start, r.Len()})
		}
		out.Disks[i].auditJSON = v
	}
}

// maxMissedShown bounds the ranges that a person is shown of a disk.
const maxMissedShown = 20

func printAudits(w *checkedWriter, audits []backup.Audit) {
	for _, a := range audits {
		switch {
		case a.Bitmap == "":
			w.printf("  %s: audit: there is no bitmap that could be audited\n", a.Disk)
			continue
		case !a.Lied():
			w.printf("  %s: audit: bitmap %s missed nothing since %s\n", a.Disk, a.Bitmap, a.Since)
			continue
		}
		w.printf("  %s: audit: bitmap %s missed %s that changed since %s:\n", a.Disk, a.Bitmap, size(a.Bytes), a.Since)
		for i, r := range a.Missed {
			if i == maxMissedShown {
				w.printf("      … (--json has more)\n")
				break
			}
			w.printf("      %d bytes at %d\n", r.Len(), r.Start)
		}
	}
}

// auditError is what it means for the exit status that a bitmap missed anything.
func auditError(audits []backup.Audit) error {
	for _, a := range audits {
		if a.Lied() {
			return damageFound{fmt.Errorf("disk %s: bitmap %s missed %d bytes that changed since %s; this checkpoint has them, and earlier ones that relied on it may lack them",
				a.Disk, a.Bitmap, a.Bytes, a.Since)}
		}
	}
	return nil
}
