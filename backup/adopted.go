// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"

	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/chain"
)

// chooseBitmapNamed takes an increment since a bitmap of the image that was named.
func (s *session) chooseBitmapNamed(ctx context.Context, d *disk, p *DiskPlan, seen Seen) error {
	v, err := seen.Judge.SinceBitmap(ctx, d.req.Bitmap)
	switch {
	case err != nil:
		return err
	case !v.Trusted:
		return &NotTrustedError{Disk: d.req.Disk, Code: v.Code, Reason: v.Reason, Hint: "a full needs no bitmap"}
	}
	p.Mode, p.Detection, p.Code, p.Reason = Incremental, ByBitmap, v.Code, v.Reason
	p.verdict, p.Bitmap = v, d.req.Bitmap
	if v.Base.Manifest != nil {
		p.Since = v.Base.Manifest.Ref()
	}
	s.noteAdopted(d, v)
	return nil
}

// noteAdopted tells, once, what vouches for a bitmap that another program made.
func (s *session) noteAdopted(d *disk, v trust.Verdict) {
	ours := v.Base.Disk != nil && v.Base.Disk.Adopted == nil
	if ours || d.vouched == v.Reason {
		return
	}
	d.vouched = v.Reason
	s.hooks.note("disk %s: %s", d.req.Disk, v.Reason)
}

// linkAdopted marks the records of bitmaps that tell what changed between an adopted
// checkpoint and this one, which follows it by the other program's word and by what both
// show: all that changed since that one, and so more. What only a clock puts before this
// one tells nothing.
func (s *session) linkAdopted(ctx context.Context, d *disk, m *chain.Manifest, rec *chain.Disk) error {
	sound, err := s.judge(d).Sound(ctx, true)
	if err != nil {
		return err
	}
	for i := range rec.Witnesses {
		w := &rec.Witnesses[i]
		w.Sound = w.Layer == 0 && sound[w.Name] && m.Parent != nil && w.Adopted == m.Parent.UUID
	}
	return nil
}
