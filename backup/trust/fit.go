// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"fmt"

	"github.com/imgbackup/imgbackup/qcow2"
)

// Fit reports whether backups of an image can be incremental by bitmap, and why
// (not), as far as the image alone tells.
func Fit(c *qcow2.Image) (bool, string) {
	if o := Look(c).Objection(); o != nil && o.Code != ReasonUnusable {
		return false, o.Reason
	}
	active := c.Layers[0]
	if err := active.CheckAddBitmap(); err != nil {
		return false, err.Error()
	}
	usable := 0
	for _, b := range active.Bitmaps {
		if b.Problem == nil && !b.InUse && b.Enabled {
			usable++
		}
	}
	switch {
	case active.BitmapsErr != nil:
		return true, fmt.Sprintf("after the next backup; now no bitmap can be used: %v", active.BitmapsErr)
	case usable == 0:
		return true, "after the next backup; now no bitmap can be used"
	}
	if usable == 1 {
		return true, "1 bitmap can be used"
	}
	return true, fmt.Sprintf("%d bitmaps can be used", usable)
}

// Objection is the reason why no bitmap of the image can be believed, whatever
// its name; nil: the image alone tells none.
func (i *Image) Objection() *Objection {
	active := &i.Layers[0]
	if active.ReadBy != "" {
		return objectForm(ReasonForeign, "the image is read by %s, which tells nothing of bitmaps that could be believed", active.ReadBy)
	}
	h := active.Header
	switch {
	case h == nil:
		return objectForm(ReasonRaw, "raw images hold no bitmaps")
	case h.Version < 3:
		return objectForm(ReasonVersion2, "qcow2 images of version 2 hold no bitmaps")
	case h.Has(qcow2.IncompatCorrupt):
		return object(ReasonCorrupt, "QEMU marked the image corrupt")
	case h.Has(qcow2.IncompatDirty):
		return object(ReasonDirty, "the image was not closed cleanly (its dirty bit is set)")
	case i.RawData.objection() != nil:
		return i.RawData.objection()
	case active.BitmapsErr != nil:
		return object(ReasonUnusable, "no bitmap of the image can be used: %v", active.BitmapsErr)
	}
	return nil
}
