// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qcow2"
)

// The steps of the writing order, as [Hooks.Step] names them.
const (
	StepPlan      = "plan"      // look at images and repository, write nothing
	StepIntent    = "intent"    // the intent is about to be written
	StepAdd       = "add"       // a bitmap is about to be added to an image
	StepAdded     = "added"     // every bitmap stands
	StepRead      = "read"      // guest data is about to be read
	StepStored    = "stored"    // every pack, map, bitmap and index is durable
	StepCommit    = "commit"    // the manifest is about to be created
	StepCommitted = "committed" // the manifest stands
	StepRetire    = "retire"    // an old bitmap is about to be removed
	StepRetired   = "retired"   // the old bitmaps are gone, the intent is not
	StepDone      = "done"      // intent and lease are gone
)

// attempts bounds how often a backup begins again because an image changed
// between its plan and its locks.
const attempts = 3

// Run backs up the domain's disks. On any error but an [*chain.UnknownOutcomeError]
// the repository's chain is as it was, and so are the images' bitmaps, unless
// the error says that an intent was left to be settled by the next run.
func Run(ctx context.Context, repo *chain.Repository, req Request, hooks Hooks) (*Result, error) {
	return runSession(ctx, repo, req, hooks, func(*session) {})
}

func runSession(ctx context.Context, repo *chain.Repository, req Request, hooks Hooks, how func(*session)) (*Result, error) {
	begin := time.Now()
	var notes []string
	outer := hooks.Note
	hooks.Note = func(msg string) {
		notes = append(notes, msg)
		if outer != nil {
			outer(msg)
		}
	}
	s, err := newSession(repo, req, hooks, how)
	if err != nil {
		return nil, err
	}
	defer s.close()
	result, err := s.run(ctx)
	if err != nil {
		return nil, err
	}
	result.Elapsed = time.Since(begin)
	result.Notes = notes
	return result, nil
}

func (s *session) run(ctx context.Context) (*Result, error) {
	if s.writes() {
		if err := s.settle(ctx); err != nil {
			return nil, err
		}
	}
	for try := 1; ; try++ {
		result, err := s.attempt(ctx)
		var changed *changedError
		if try == attempts || !errors.As(err, &changed) {
			return result, err
		}
		s.hooks.note("%v; beginning again", err)
	}
}

// attempt goes once through the writing order.
func (s *session) attempt(ctx context.Context) (*Result, error) {
	// What the plan has to read is read until the very end.
	ctx, s.giveUp = context.WithCancelCause(ctx)
	defer s.giveUp(nil)
	s.hooks.step(StepPlan)
	if err := s.loadHistory(ctx); err != nil {
		return nil, err
	}
	if err := s.open(ctx); err != nil {
		return nil, err
	}
	plan, err := s.plan(ctx, nil)
	if err != nil {
		return nil, err
	}
	if err := s.accepted(plan); err != nil {
		return nil, err
	}
	if err := s.guard(ctx); err != nil {
		return nil, err
	}
	if !s.writes() {
		return s.lookOnly(ctx, plan)
	}
	intent, err := s.intent(plan)
	if err != nil {
		return nil, err
	}
	if err := s.unlock(); err != nil {
		return nil, err
	}

	lease, err := s.repo.TakeLease(ctx, fmt.Sprintf("backup of %s, checkpoint %s", s.req.Domain, s.checkpoint))
	if err != nil {
		return nil, err
	}
	intent.UUID = lease.UUID // so that whoever settles the one finds the other
	result, err := s.writeUnderLease(ctx, plan, intent)
	// The lease only tells others that somebody writes: it goes whatever came
	// of it, even when we were cancelled.
	tidying, cancel := chain.Tidying(ctx)
	lerr := s.repo.DeleteLease(tidying, lease.UUID)
	cancel()
	if lerr != nil && err == nil {
		s.hooks.note("the backup is complete, but its lease could not be removed: %v", lerr)
	}
	if err != nil {
		return nil, err
	}
	return result, s.giveOut(ctx, result.Plan, s.afterCommit)
}

func (s *session) writeUnderLease(ctx context.Context, plan *Plan, intent *chain.Intent) (*Result, error) {
	s.hooks.step(StepIntent)
	if len(intent.Images) > 0 {
		if err := s.repo.PutIntent(ctx, intent); err != nil {
			return nil, err
		}
	}
	result, committed, err := s.writeUnderIntent(ctx, plan, intent)
	if err != nil {
		var unknown *chain.UnknownOutcomeError
		if committed || errors.As(err, &unknown) {
			// Bitmaps and intent stay: the next run finds out and settles.
			return nil, err
		}
		if uerr := s.undo(context.WithoutCancel(ctx), intent); uerr != nil {
			return nil, errors.Join(err, uerr)
		}
		return nil, err
	}
	s.hooks.step(StepRetired)
	if len(intent.Images) > 0 {
		tidying, cancel := chain.Tidying(ctx)
		defer cancel()
		if err := s.repo.DeleteIntent(tidying, intent.Domain, intent.UUID); err != nil {
			s.hooks.note("the backup is complete, but its intent could not be removed: %v", err)
		}
	}
	s.hooks.step(StepDone)
	return result, nil
}

// writeUnderIntent adds the bitmaps, reads, stores and commits, and reports
// whether the manifest stands.
func (s *session) writeUnderIntent(ctx context.Context, plan *Plan, intent *chain.Intent) (result *Result, committed bool, err error) {
	if err := s.addBitmaps(ctx, plan, intent); err != nil {
		return nil, false, err
	}
	s.hooks.step(StepAdded)
	if err := s.open(ctx); err != nil {
		return nil, false, err
	}
	defer s.boundLockTime()()
	defer func() {
		if !committed {
			err = lockTime(ctx, err)
		}
	}()
	if err := s.verifyAdded(ctx, plan, intent); err != nil {
		return nil, false, err
	}
	s.rememberIdentity()
	if plan, err = s.planAgain(ctx, plan); err != nil {
		return nil, false, err
	}
	if s.hooks.Planned != nil {
		s.hooks.Planned(plan)
	}
	s.noteLacking(plan)
	s.states.kept.drop()
	s.hooks.step(StepRead)
	var manifest *chain.Manifest
	var stats archive.Stats
	if s.archives() {
		manifest, stats, err = s.archive(ctx, plan)
	} else {
		if s.receiver != nil {
			err = s.giveOut(ctx, plan, s.receiver.Write)
		}
		if err == nil {
			manifest, err = s.checkpointOnly(ctx, plan)
		}
	}
	if err != nil {
		return nil, false, err
	}
	if err := s.compareIdentity(); err != nil {
		return nil, false, err
	}
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	s.hooks.step(StepCommit)
	if err := s.commit(ctx, manifest); err != nil {
		return nil, false, err
	}
	s.hooks.step(StepCommitted)
	result = &Result{Manifest: manifest, Plan: plan, Stats: stats}
	if !s.archives() {
		return result, true, nil // the images may be needed still
	}
	if err := s.unlock(); err != nil {
		s.hooks.note("closing the images: %v", err)
	}
	s.retire(context.WithoutCancel(ctx), plan, manifest)
	return result, true, nil
}

// boundLockTime gives the attempt up when the images have been locked for as long
// as the caller allows, unless stop is called before. The attempt's context has no
// deadline that others could see: they would give up before it, for reasons of
// their own.
func (s *session) boundLockTime() (stop func()) {
	if s.req.MaxLock <= 0 {
		return func() {}
	}
	giveUp := s.giveUp
	timer := time.AfterFunc(s.req.MaxLock, func() { giveUp(&LockTimeError{s.req.MaxLock}) })
	return func() { timer.Stop() }
}

// lockTime puts the cause in place of the bare cancellation it led to.
func lockTime(ctx context.Context, err error) error {
	var cause *LockTimeError
	var unknown *chain.UnknownOutcomeError
	if err != nil && errors.As(context.Cause(ctx), &cause) && !errors.As(err, &unknown) {
		return cause
	}
	return err
}

// planAgain plans under the locks that stay until the commit: what was planned
// before the bitmaps were added counts no more.
func (s *session) planAgain(ctx context.Context, before *Plan) (*Plan, error) {
	plan, err := s.plan(ctx, before)
	if err != nil {
		return nil, err
	}
	for i, p := range plan.Disks {
		q := before.Disks[i]
		if p.worseThan(q) {
			return nil, &chain.DiskError{Disk: p.Disk, Err: imageChanged(p.Path, "%s", p.Reason)}
		}
		if p.Detection == ByContent && q.Detection == ByContent && p.base.Manifest.UUID == q.base.Manifest.UUID {
			// Adding a bitmap makes QEMU drop those that it finds invalid: what
			// was seen before it says why none was believed.
			p.Code, p.Reason = q.Code, q.Reason
			p.verdict.DistrustAll = p.verdict.DistrustAll || q.verdict.DistrustAll
		}
	}
	return plan, nil
}

// archive reads every disk and stores all that the manifest will name.
func (s *session) archive(ctx context.Context, plan *Plan) (*chain.Manifest, archive.Stats, error) {
	var none archive.Stats
	w, err := archive.NewWriter(ctx, s.repo.Store, archive.WriterOptions{Level: s.req.Level, SkipVerify: s.req.NoVerify, TempDir: s.req.TempDir})
	if err != nil {
		return nil, none, err
	}
	defer w.Abort() // does nothing after Finish
	var total int64
	random := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	for i, d := range s.disks {
		d.total = plan.Disks[i].ReadBytes
		total += d.total
		if err := d.image.CrossCheck(ctx, CrossCheckSamples, random); err != nil {
			return nil, none, &chain.DiskError{Disk: d.req.Disk, Err: err}
		}
	}
	s.total.Store(total)
	manifest := s.manifest(plan)
	for i, d := range s.disks {
		p := plan.Disks[i]
		s.count(d, 0)
		m, err := s.readDisk(ctx, d, p, w)
		if err == nil {
			var stats archive.DiskStats
			stats, err = m.Close(ctx)
			manifest.Disks[i].DataBytes = stats.Data
			manifest.Disks[i].StoredBytes = stats.Stored
			manifest.Disks[i].ReusedBytes = stats.Reused
		}
		if err != nil {
			return nil, none, &chain.DiskError{Disk: p.Disk, Err: err}
		}
		if damage := s.damage.Swap(nil); damage != nil {
			s.hooks.note("disk %s: the archive of %s is damaged; what could not be compared is stored again: %v", p.Disk, p.base.Manifest.Checkpoint, damage)
		}
	}
	for i, d := range s.disks {
		if err := s.recordBitmaps(ctx, d, plan.Disks[i], w, &manifest.Disks[i]); err != nil {
			return nil, none, &chain.DiskError{Disk: d.req.Disk, Err: err}
		}
	}
	if manifest.Files, err = s.storeFiles(ctx, w); err != nil {
		return nil, none, err
	}
	maps, stats, err := w.Finish(ctx)
	if err != nil {
		return nil, none, err
	}
	for _, note := range stats.Notes {
		s.hooks.note("%s", note)
	}
	for i := range manifest.Disks {
		p := plan.Disks[i]
		list := []archive.MapRef{maps[i]}
		if p.Mode == Incremental {
			list = append(list, p.base.Disk.Maps...)
			if list, err = s.flatten(ctx, p, list); err != nil {
				return nil, none, &chain.DiskError{Disk: p.Disk, Err: err}
			}
		}
		manifest.Disks[i].Maps = list
	}
	s.hooks.step(StepStored)
	return manifest, stats, nil
}

// CrossCheckSamples is how many clusters of a disk are read through a second
// reader, too.
const CrossCheckSamples = 8

// maxReplay bounds the maps that one disk's replay reads.
const maxReplay = 64

// flatten replaces a long or heavy list of maps by one resolved full map,
// which names the chunks that the list names. No data is copied.
func (s *session) flatten(ctx context.Context, p *DiskPlan, list []archive.MapRef) ([]archive.MapRef, error) {
	var deltas int64
	for _, ref := range list[:len(list)-1] {
		deltas += ref.Length
	}
	full := list[len(list)-1].Length
	if len(list) <= maxReplay && deltas <= max(full, smallMaps) {
		return list, nil
	}
	maps, err := chain.ReplayMaps(ctx, s.repo, &chain.Disk{Name: p.Disk, Size: p.VirtualSize, Maps: list})
	if err != nil {
		return nil, err
	}
	ref, err := archive.WriteMap(ctx, s.repo.Store, archive.MapOptions{Disk: p.Disk, Size: p.VirtualSize, Full: true, TempDir: s.req.TempDir}, archive.Replay(ctx, maps, 0, p.VirtualSize))
	if err != nil {
		return nil, err
	}
	return []archive.MapRef{ref}, nil
}

// smallMaps is the size of deltas, bytes, below which a replay is not worth
// shortening.
const smallMaps = 1 << 20

// recordBitmaps stores every bitmap of ours as it is in the image now, for
// later backups to compare with.
func (s *session) recordBitmaps(ctx context.Context, d *disk, p *DiskPlan, w *archive.Writer, rec *chain.Disk) error {
	known := s.statesOf(d.req.Disk).Bitmaps()
	for i, layer := range d.image.Layers {
		for _, b := range layer.Bitmaps {
			if known[b.Name] == nil || b.InUse || b.Problem != nil {
				continue
			}
			r, err := s.recordBitmap(ctx, w, layer, i, b)
			if err != nil {
				return err
			}
			if r != nil {
				r.Sound = i == 0 && p.sound[b.Name]
				rec.Witnesses = append(rec.Witnesses, *r)
			}
		}
	}
	return nil
}

func (s *session) recordBitmap(ctx context.Context, w *archive.Writer, layer *qcow2.Layer, index int, b *qcow2.Bitmap) (*chain.BitmapRecord, error) {
	dirty, err := b.DirtyBytes()
	if err != nil {
		// Damage in a bitmap must not keep its disk from being saved.
		s.hooks.note("bitmap %s of %s cannot be read and is not recorded: %v", b.Name, layer.Path, err)
		return nil, nil
	}
	ref, err := w.PutBitmap(ctx, headerOf(b, layer), b.Runs())
	if err != nil {
		return nil, fmt.Errorf("recording bitmap %s: %w", b.Name, err)
	}
	return &chain.BitmapRecord{
		Name: b.Name, Layer: index, LayerPath: layer.Path, Granularity: b.Granularity,
		Size: layer.Size, DirtyBytes: dirty, Enabled: b.Enabled, Object: ref,
	}, nil
}
