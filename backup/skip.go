// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/chain"
)

// A domain of which nothing has changed gets no checkpoint if none is wanted then; that it was
// looked at is remembered. Mostly the files' times tell, without a plan; else the bitmaps, or
// what was read.

// errNothingNew ends the writing of an archive that would be as the one before.
var errNothingNew = errors.New("nothing has changed")

// skipUntouched returns the plan to make nothing, if no file of any image was touched since the
// domain's newest checkpoint; nil: something was, or may have been.
func (s *session) skipUntouched(ctx context.Context) (*Plan, error) {
	newest := s.newestAlike()
	if newest == nil {
		return nil, nil
	}
	plan := &Plan{Domain: s.req.Domain, Unchanged: newest.Ref(), parent: newest}
	for _, d := range s.disks {
		cd, _ := newest.Disk(d.req.Disk)
		st := chain.DiskState{Manifest: newest, Disk: cd}
		same, err := s.untouched(ctx, d, st)
		if !same || err != nil {
			return nil, err
		}
		if same, err = s.samplesStand(ctx, d, cd); err != nil {
			return nil, err
		}
		if !same {
			s.noteLyingTimes(d, st)
			return nil, nil
		}
		plan.Disks = append(plan.Disks, &DiskPlan{
			Disk: cd.Name, Path: d.req.Path, Format: d.req.Format, VirtualSize: cd.Size, Requested: d.req.Mode,
			Mode: Incremental, Detection: ByTimes, Code: trust.ReasonUnchanged,
			Reason: "no file of the image was touched since " + newest.Checkpoint, Since: newest.Ref(),
		})
	}
	if same, err := s.filesAreThoseOf(ctx, newest); !same || err != nil {
		return nil, err
	}
	return plan, nil
}

// samplesStand is samplesAgree of a state that nothing is built on: its packs need not all be
// there.
func (s *session) samplesStand(ctx context.Context, d *disk, cd *chain.Disk) (bool, error) {
	st, err := s.states.look(ctx, cd)
	if err == nil {
		var same bool
		same, err = s.samplesAgree(ctx, d, &archived{Disk: st, parts: s.states.parts})
		if err == nil {
			return same, nil
		}
	}
	if s.req.Salvage && unreadable(err) {
		return false, nil
	}
	if archive.IsDamage(err) {
		s.hooks.note("disk %s: the archive cannot be compared with, so that the disk is read: %v", d.req.Disk, err)
		return false, nil
	}
	return false, err
}

// newestAlike is the domain's newest checkpoint, if it is an archive of these very disks, with the
// tags that are wanted; else nil.
func (s *session) newestAlike() *chain.Manifest {
	newest := chain.Newest(s.history)
	if newest == nil || newest.Kind != chain.KindArchive || len(newest.Disks) != len(s.disks) ||
		!slices.EqualFunc(newest.LeftOut, s.req.LeftOut, func(a, b chain.LeftOut) bool { return a.Disk == b.Disk && a.Code == b.Code }) {
		return nil
	}
	for _, tag := range s.req.Tags {
		if !slices.Contains(newest.Tags, tag) {
			return nil // it is wanted for what it says
		}
	}
	for _, d := range s.disks {
		if _, ok := newest.Disk(d.req.Disk); !ok || d.req.Mode == Full || d.req.Since != "" && d.req.Since != newest.Checkpoint {
			return nil
		}
	}
	return newest
}

// skipPlanned reports in a plan that nothing need be made, if by it nothing has changed.
func (s *session) skipPlanned(ctx context.Context, plan *Plan) error {
	newest := s.newestAlike()
	if newest == nil {
		return nil
	}
	for _, p := range plan.Disks {
		cd, _ := newest.Disk(p.Disk)
		tells := p.Detection == ByBitmap || p.Detection == ByTimes
		if !tells || p.DirtyBytes > 0 || p.base.Manifest.UUID != newest.UUID || p.VirtualSize != cd.Size || len(cd.Lost) > 0 {
			return nil
		}
	}
	same, err := s.filesAreThoseOf(ctx, newest)
	if same {
		plan.Checkpoint, plan.Unchanged = "", newest.Ref()
	}
	return err
}

// checkSomethingNew returns errNothingNew if what was read is what the newest checkpoint has,
// and no image has got a bitmap for the new one, by which the next backup can be smaller.
func (s *archiver) checkSomethingNew(ctx context.Context, plan *Plan) error {
	newest := s.newestAlike()
	if !s.req.SkipUnchanged || newest == nil {
		return nil
	}
	for i, p := range plan.Disks {
		cd, _ := newest.Disk(p.Disk)
		if p.Mode != Incremental || p.AddsBitmap || s.disks[i].changed || s.disks[i].damage.Load() != nil ||
			p.base.Manifest.UUID != newest.UUID || p.VirtualSize != cd.Size || len(cd.Lost) > 0 {
			return nil
		}
	}
	same, err := s.filesAreThoseOf(ctx, newest)
	if err == nil && same {
		plan.Checkpoint, plan.Unchanged = "", newest.Ref()
		err = errNothingNew
	}
	return err
}

// filesAreThoseOf reports whether the domain's files, and whether it starts with its host, are those that a
// checkpoint has.
func (s *session) filesAreThoseOf(_ context.Context, m *chain.Manifest) (bool, error) {
	if m.Autostart != s.req.Autostart {
		return false, nil
	}
	var now []chain.File
	for _, f := range s.files {
		if f.req.Data != nil {
			ref := archive.FileRef{Size: int64(len(f.req.Data)), SHA256: archive.Sum(f.req.Data)}
			now = append(now, chain.File{Role: f.req.Role, Name: f.req.Name, Path: f.req.Path, FileRef: ref})
		}
		for _, o := range f.opened {
			parts, err := o.describe(f.req.Role)
			if err != nil {
				return false, err
			}
			now = append(now, parts...)
		}
	}
	return slices.EqualFunc(now, m.Files, func(a, b chain.File) bool {
		a.Object, b.Object = archive.Ref{}, archive.Ref{}
		return a == b
	}), nil
}

// describe is what store says of the file, but for the objects.
func (o *openedFile) describe(role string) ([]chain.File, error) {
	var parts []chain.File
	size := o.source().Opened().Size
	for offset := int64(0); offset < size || len(parts) == 0; offset += archive.MaxFile {
		h := sha256.New()
		n, err := io.Copy(h, io.NewSectionReader(o.source(), offset, min(size-offset, archive.MaxFile)))
		if err != nil {
			return nil, err
		}
		ref := archive.FileRef{Size: n, SHA256: archive.Digest(h.Sum(nil))}
		parts = append(parts, chain.File{Role: role, Path: o.source().Path(), Name: o.name, Offset: offset, FileRef: ref})
	}
	return parts, nil
}

// skip remembers that the domain is as its newest checkpoint has it. The images are open, or
// their identity was compared after all was read.
func (s *session) skip(ctx context.Context, plan *Plan) (*Result, error) {
	seen := &chain.Seen{
		Domain: s.req.Domain, Host: s.self.Host, BootID: s.self.BootID,
		Time: time.Now().UTC().Truncate(time.Second), Checkpoint: *plan.Unchanged,
	}
	for _, d := range s.disks {
		seen.Disks = append(seen.Disks, chain.SeenDisk{Name: d.req.Disk, Files: d.settled})
	}
	if err := s.repo.PutSeen(ctx, seen); err != nil {
		return nil, err
	}
	return &Result{Plan: plan, Seen: seen, Audits: s.audits()}, nil
}

// skipOpen is skip of images that are open and were only looked at.
func (s *session) skipOpen(ctx context.Context, plan *Plan) (*Result, error) {
	if err := s.compareIdentity(""); err != nil {
		return nil, err
	}
	return s.skip(ctx, plan)
}
