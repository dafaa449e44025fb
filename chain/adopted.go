// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"strings"
	"unicode/utf8"
)

// maxBitmapName is the longest name of a bitmap in a qcow2 image, bytes.
const maxBitmapName = 1023

// validateBitmap: a bitmap of ours has the checkpoint's identity in its name. One that
// was adopted has the name that another program gave it, and no archive builds on it.
func (d *Disk) validateBitmap(c *checker, m *Manifest) {
	if d.Bitmap == "" {
		c.that(d.Granularity == 0, "granularity %d without a bitmap", d.Granularity)
		c.that(d.Adopted == nil && d.LibvirtBitmap == "", "a bitmap was adopted, or one added for libvirt, and there is none")
		return
	}
	c.that(d.LibvirtBitmap == "" || d.LibvirtBitmap == m.Checkpoint && d.Adopted == nil, "libvirt's bitmap is named %.80q", d.LibvirtBitmap)
	c.powerOfTwo("granularity", d.Granularity, minGranularity, maxGranularity)
	ours := BitmapName(m.Checkpoint, m.UUID)
	if d.Adopted == nil {
		c.that(d.Bitmap == ours, "bitmap %.80q is not named after the checkpoint", d.Bitmap)
		return
	}
	c.that(m.Kind == KindCheckpoint, "an archive adopted the bitmap %.80q", d.Bitmap)
	c.that(ValidBitmapName(d.Bitmap) && d.Bitmap != ours, "the adopted bitmap is named %.80q", d.Bitmap)
	c.time("adopted", *d.Adopted)
}

// ValidBitmapName reports whether a bitmap in an image may have this name, and whether
// it can be recorded: text of 1 to 1,023 bytes without NUL.
func ValidBitmapName(s string) bool {
	return s != "" && len(s) <= maxBitmapName && utf8.ValidString(s) && !strings.Contains(s, "\x00")
}

// AdoptedAs is the uuid that a record of the state's bitmap bears; empty: the bitmap is
// ours, and its name is enough.
func (s DiskState) AdoptedAs() string {
	if s.Disk.Adopted == nil {
		return ""
	}
	return s.Manifest.UUID
}

// OwnRecord is the state's bitmap as it was when the checkpoint was put on record, with
// the bitmap in the image already; nil: it was made then, and empty.
func (s DiskState) OwnRecord() *BitmapRecord {
	for i := range s.Disk.Witnesses {
		if r := &s.Disk.Witnesses[i]; r.Name == s.Disk.Bitmap && r.Adopted == s.AdoptedAs() {
			return r
		}
	}
	return nil
}

// AdoptedAs is the uuid of the checkpoint that adopted the bitmap of this name; empty:
// none did.
func (s States) AdoptedAs(bitmap string) string {
	for _, st := range s {
		if st.Disk.Bitmap == bitmap && st.Disk.Adopted != nil {
			return st.Manifest.UUID
		}
	}
	return ""
}

// OurBitmap is the bitmap that the checkpoint added, which is ours to remove; empty: none.
func (d *Disk) OurBitmap() string {
	if d.Adopted != nil {
		return ""
	}
	return d.Bitmap
}
