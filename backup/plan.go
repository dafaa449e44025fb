// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"

	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qcow2"
)

// Detection says how a backup finds out what changed.
type Detection string

const (
	ByBitmap  Detection = "bitmap"  // the image's dirty bitmap tells
	ByContent Detection = "content" // everything is read and compared with the archive
	ByNothing Detection = "none"    // everything is stored
	// ByTimes: nothing changed, since no file of the image was touched.
	ByTimes Detection = "unchanged"
)

// Plan says what a backup will do, disk by disk.
type Plan struct {
	Domain     string               `json:"domain"`
	Checkpoint string               `json:"checkpoint"`
	Parent     *chain.CheckpointRef `json:"parent,omitempty"`
	Disks      []*DiskPlan          `json:"disks"`
	// Unchanged is the newest checkpoint, if the domain is as that has it and no other is made.
	Unchanged *chain.CheckpointRef `json:"unchanged_since,omitempty"`

	parent *chain.Manifest
}

// DiskPlan says how one disk will be backed up, and why. Sizes are in bytes.
type DiskPlan struct {
	Disk        string               `json:"target"`
	RenamedFrom string               `json:"renamed_from,omitempty"` // what it was called before
	Path        string               `json:"path"`
	Format      qcow2.Format         `json:"format"`
	VirtualSize int64                `json:"virtual_size"`
	Requested   Mode                 `json:"requested"`
	Mode        Mode                 `json:"mode"` // full or incremental
	Detection   Detection            `json:"detection"`
	Code        trust.Reason         `json:"reason_code"`
	Reason      string               `json:"reason"`
	Since       *chain.CheckpointRef `json:"incremental_from,omitempty"`
	Bitmap      string               `json:"incremental_bitmap,omitempty"` // that was named to be incremental since
	DirtyBytes  int64                `json:"dirty_bytes"`                  // what is known to have changed; by content and full: what is read
	ReadBytes   int64                `json:"read_bytes"`                   // of guest data

	NewBitmap
	basis
}

// NewBitmap reports whether the new checkpoint's bitmap is added to a disk's image.
type NewBitmap struct {
	AddsBitmap     bool   `json:"adds_bitmap"`
	NoBitmapReason string `json:"no_bitmap_reason,omitempty"`

	lacking bool // though it ought to have got one
}

// basis is what a disk's plan was made of.
type basis struct {
	base    chain.DiskState  // what the delta map builds on; none for a full map
	above   bitmapstore.Runs // outside of it nothing has changed, and is not read by content; nil: all is
	verdict trust.Verdict    // on the image's bitmaps, if it was asked for
	sound   map[string]bool  // bitmaps of ours that stood every check, and whether each alone tells what changed
}

// worseThan reports whether p promises less than an earlier plan q did: the
// disk lost its trusted bitmap, or the place for a new one, in between.
func (p *DiskPlan) worseThan(q *DiskPlan) bool {
	return q.Detection == ByBitmap && p.Detection != ByBitmap || q.AddsBitmap && !p.AddsBitmap
}

// makePlan decides for every disk how it is backed up. It reads the images and the
// repository and writes nothing. before is the plan that the bitmaps were added
// by, if they have been.
func (s *session) makePlan(ctx context.Context, before *Plan) (*Plan, error) {
	plan := &Plan{Domain: s.req.Domain, Checkpoint: s.point.name}
	s.recognize()
	if before == nil {
		s.noteRenamed()
	}
	if a, ok := s.to.(asker); ok && len(s.disks) > 1 && !s.req.SkipUnchanged {
		for _, d := range s.disks {
			a.ask(ctx, d)
		}
	}
	for i, d := range s.disks {
		p, err := s.planDisk(ctx, d, before == nil)
		if err != nil {
			return nil, &chain.DiskError{Disk: d.req.Disk, Err: err}
		}
		if before != nil {
			p.NewBitmap = before.Disks[i].NewBitmap
		}
		plan.Disks = append(plan.Disks, p)
	}
	if !s.records {
		plan.Checkpoint = ""
	}
	if plan.parent = s.parent(plan); plan.parent != nil {
		plan.Parent = plan.parent.Ref()
	}
	return plan, nil
}

// parent returns the checkpoint that the new one follows: the newest that a
// disk builds on, or else the newest of the domain.
func (s *session) parent(plan *Plan) *chain.Manifest {
	var parent *chain.Manifest
	for _, p := range plan.Disks {
		if base := p.base.Manifest; base != nil && (parent == nil || base.Sequence > parent.Sequence) {
			parent = base
		}
	}
	if parent == nil {
		parent = chain.Newest(s.history)
	}
	return parent
}

func (s *session) planDisk(ctx context.Context, d *disk, bitmap bool) (*DiskPlan, error) {
	p := &DiskPlan{
		Disk:        d.req.Disk,
		RenamedFrom: d.former.Name,
		Path:        d.req.Path,
		Format:      d.req.Format,
		VirtualSize: d.image.Size(),
		Requested:   d.req.Mode,
		Mode:        Full,
		Detection:   ByNothing,
	}
	if bitmap && s.wantsBitmap(d) {
		d.image.Layers[0].WantRefcounts()
	}
	if err := s.to.choose(ctx, d, p); err != nil {
		return nil, err
	}
	if bitmap && s.records {
		if err := s.chooseBitmap(ctx, d, p); err != nil {
			return nil, err
		}
	}
	return p, measure(ctx, d, p)
}

// judge judges the bitmaps in a disk's image, which is open.
func (s *session) judge(d *disk) *trust.Judge {
	return &trust.Judge{
		Image: s.look(d), States: d.states, Gone: d.gone, Unknown: s.unknown,
		Archive: s.states, Clusters: &d.clusters, Seed: s.states.seed,
	}
}

// measure fills in how much will be read.
func measure(ctx context.Context, d *disk, p *DiskPlan) error {
	what := bitmapstore.Of(bitmapstore.Run{Start: 0, End: p.VirtualSize})
	switch p.Detection {
	case ByTimes:
		return nil
	case ByBitmap:
		what = p.verdict.Dirty
	case ByContent:
		if p.above != nil {
			what = p.above
		}
	}
	var err error
	if p.ReadBytes, err = d.image.DataIn(ctx, what).Bytes(); err != nil {
		return err
	}
	p.DirtyBytes = p.ReadBytes
	if p.Detection == ByBitmap {
		p.DirtyBytes, err = p.verdict.Dirty.Bytes()
	}
	return err
}

// oursAnywhere returns the names of the bitmaps that manifests of the domain
// added, whatever the disk. Those that were adopted are not ours.
func (s *session) oursAnywhere() map[string]*chain.Manifest {
	names := make(map[string]*chain.Manifest)
	for _, m := range s.history {
		for i := range m.Disks {
			if name := m.Disks[i].Bitmap; name != "" && m.Disks[i].Adopted == nil {
				names[name] = m
			}
		}
	}
	return names
}

// SinceWhat is what an incremental is incremental since, for people: a checkpoint, or a
// bitmap that belongs to none.
func (p *DiskPlan) SinceWhat() string {
	if p.Since == nil {
		return "bitmap " + p.Bitmap
	}
	return p.Since.Name
}
