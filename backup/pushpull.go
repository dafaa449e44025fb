// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"errors"
	"fmt"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qcow2"
)

// Source is one disk whose data goes elsewhere than into the repository. Its
// image is open, under QEMU's locks, and stays what it is until the function
// that got it returns.
type Source struct {
	Plan    *DiskPlan
	Chain   *qcow2.Image
	Changes bitmapstore.Runs // all that may differ from Plan.Since; the whole disk in a full backup
}

// Outlet is where the data of the disks goes that the repository does not get.
// It must not close the chains.
type Outlet func(ctx context.Context, disks []Source) error

// CreateCheckpoint adds a checkpoint without data: a bitmap to every disk, and a
// manifest that says so. A disk that can hold none fails it.
func CreateCheckpoint(ctx context.Context, repo *chain.Repository, req Request, hooks Hooks) (*Result, error) {
	return runWithoutArchive(ctx, repo, req, hooks, func(s *session) { s.makesCheckpoint = true })
}

// Receiver takes the disks of a push backup: all of them, or none.
type Receiver interface {
	// Accept refuses disks that it cannot take, before anything is written
	// anywhere. It is called for every plan; what comes to Write may still
	// differ.
	Accept(disks []Source) error
	// Write makes the disks' data durable, where nobody takes it for finished
	// yet. It is called once.
	Write(ctx context.Context, disks []Source) error
	// Publish makes what was written appear, or fails and leaves nothing. The
	// images are known to have stayed the same until then.
	Publish() error
	// Retract takes back what Publish did, since the checkpoint could not be
	// made.
	Retract() error
}

// Push gives the disks to out, full or incremental since a checkpoint of the
// repository. If the request names a checkpoint, it is created for the same
// instant, once out has everything; else nothing is written to images and
// repository. After a [*chain.UnknownOutcomeError] what was published stays.
func Push(ctx context.Context, repo *chain.Repository, req Request, hooks Hooks, out Receiver) (*Result, error) {
	return runWithoutArchive(ctx, repo, req, hooks, func(s *session) {
		s.makesCheckpoint, s.receiver = req.Checkpoint != "", out
	})
}

// PushDryRun returns the plan that [Push] would carry out, and writes nothing.
// out is asked whether it would accept the disks.
func PushDryRun(ctx context.Context, repo *chain.Repository, req Request, hooks Hooks, out Receiver) (*Plan, error) {
	return dryRun(ctx, repo, req, hooks, func(s *session) {
		s.kind = chain.KindCheckpoint
		s.makesCheckpoint, s.receiver = req.Checkpoint != "", out
	})
}

// Pull gives the disks to an out that offers them for others to read, full or
// incremental as in [Push]: a checkpoint that the request names is created before
// out begins, and stays whatever comes of it.
func Pull(ctx context.Context, repo *chain.Repository, req Request, hooks Hooks, out Outlet) (*Result, error) {
	return runWithoutArchive(ctx, repo, req, hooks, func(s *session) {
		s.makesCheckpoint, s.afterCommit = req.Checkpoint != "", out
	})
}

func runWithoutArchive(ctx context.Context, repo *chain.Repository, req Request, hooks Hooks, how func(*session)) (*Result, error) {
	return runSession(ctx, repo, req, hooks, func(s *session) {
		s.kind = chain.KindCheckpoint
		how(s)
	})
}

// archives reports whether the disks' data goes into the repository.
func (s *session) archives() bool { return s.kind == chain.KindArchive }

// writes reports whether anything is written to images and repository.
func (s *session) writes() bool { return s.archives() || s.makesCheckpoint }

// lookOnly gives the disks away without a trace of it in images and repository.
// The images have been locked since they were planned for.
func (s *session) lookOnly(ctx context.Context, plan *Plan) (*Result, error) {
	defer s.boundLockTime()()
	s.rememberIdentity()
	if s.hooks.Planned != nil {
		s.hooks.Planned(plan)
	}
	s.hooks.step(StepRead)
	err := s.giveOut(ctx, plan, s.afterCommit)
	if s.receiver != nil {
		if err = s.giveOut(ctx, plan, s.receiver.Write); err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = s.receiver.Publish()
		}
	}
	if err != nil {
		return nil, lockTime(ctx, err)
	}
	return &Result{Plan: plan}, nil
}

// giveOut lets out have the disks, and sees that they stayed as they were.
func (s *session) giveOut(ctx context.Context, plan *Plan, out Outlet) error {
	if out == nil {
		return nil
	}
	// What was read of an image that changed meanwhile is worth nothing, however
	// the reading went.
	err := out(ctx, s.sources(plan))
	return errors.Join(err, s.compareIdentity())
}

// sources are the disks as a plan gives them out.
func (s *session) sources(plan *Plan) []Source {
	var sources []Source
	for i, d := range s.disks {
		p := plan.Disks[i]
		changes := p.verdict.Dirty
		if p.Mode == Full {
			changes = bitmapstore.Between(0, p.VirtualSize)
		}
		sources = append(sources, Source{Plan: p, Chain: d.image, Changes: changes})
	}
	return sources
}

// accepted asks the receiver, if there is one, whether it takes the disks.
func (s *session) accepted(plan *Plan) error {
	if s.receiver == nil {
		return nil
	}
	return s.receiver.Accept(s.sources(plan))
}

// commit publishes what the receiver has, if there is one, and then creates the
// manifest: a checkpoint whose files are not there would be worse than files
// without their checkpoint.
func (s *session) commit(ctx context.Context, manifest *chain.Manifest) error {
	if s.receiver != nil {
		if err := s.receiver.Publish(); err != nil {
			return err
		}
	}
	err := s.repo.Commit(ctx, manifest)
	var unknown *chain.UnknownOutcomeError
	if err != nil && s.receiver != nil && !errors.As(err, &unknown) {
		err = errors.Join(err, s.receiver.Retract())
	}
	return err
}

// checkpointOnly records the bitmaps and describes the checkpoint.
func (s *session) checkpointOnly(ctx context.Context, plan *Plan) (*chain.Manifest, error) {
	w, err := archive.NewWriter(ctx, s.repo.Store, archive.WriterOptions{Level: s.req.Level, TempDir: s.req.TempDir})
	if err != nil {
		return nil, err
	}
	defer w.Abort() // does nothing after Finish
	manifest := s.manifest(plan)
	for i, d := range s.disks {
		p := plan.Disks[i]
		rec, ok := manifest.Disk(p.Disk)
		if !ok {
			continue
		}
		if err := s.recordBitmaps(ctx, d, p, w, rec); err != nil {
			return nil, &chain.DiskError{Disk: p.Disk, Err: err}
		}
		if rec.Held, err = recordHeld(ctx, d, w, rec); err != nil {
			return nil, &chain.DiskError{Disk: p.Disk, Err: fmt.Errorf("recording where it holds data: %w", err)}
		}
	}
	// Of the domain's files only the definition, which is at hand, describes the
	// checkpoint: the others are data.
	if manifest.Files, err = s.storeFiles(ctx, w); err != nil {
		return nil, err
	}
	if _, _, err := w.Finish(ctx); err != nil {
		return nil, err
	}
	s.hooks.step(StepStored)
	return manifest, nil
}

// recordHeld stores where a disk holds data, the one thing that is known of its
// content without an archive: data that vanishes without a mark in the bitmap
// shows later that the bitmap lies.
func recordHeld(ctx context.Context, d *disk, w *archive.Writer, rec *chain.Disk) (*chain.BitmapRecord, error) {
	const sector = 512
	data := d.image.Data(ctx).Round(sector, rec.Size)
	bytes, err := data.Bytes()
	if err != nil {
		return nil, err
	}
	held := &chain.BitmapRecord{Name: rec.Bitmap, Granularity: sector, Size: rec.Size, DirtyBytes: bytes}
	held.Object, err = w.PutBitmap(ctx, bitmapstore.Header{Name: held.Name, Granularity: sector, Size: held.Size}, data)
	return held, err
}

// fullInstead is what to do where an increment is refused.
const fullInstead = "a full needs no checkpoint"

// planWithoutArchive decides what is given out of a disk whose data does not go
// into the repository.
func (s *session) planWithoutArchive(ctx context.Context, d *disk, p *DiskPlan) error {
	judge := s.judge(d)
	if s.makesCheckpoint {
		var err error
		if p.sound, err = judge.Sound(ctx, false); err != nil {
			return err
		}
	}
	if d.req.Mode != Incremental {
		p.Code, p.Reason = trust.ReasonRequested, "no incremental was asked for"
		return nil
	}
	if d.req.Since != "" {
		if _, ok := judge.States.Named(d.req.Since); !ok {
			return &NotTrustedError{Disk: d.req.Disk, Code: trust.ReasonNoCheckpoint,
				Reason: fmt.Sprintf("the repository holds no checkpoint %s of this disk", d.req.Since), Hint: fullInstead}
		}
	}
	v, err := judge.Verdict(ctx, trust.Question{Since: d.req.Since})
	if err != nil {
		return err
	}
	if !v.Trusted {
		return &NotTrustedError{Disk: d.req.Disk, Code: v.Code, Reason: v.Reason, Hint: fullInstead}
	}
	p.Mode, p.Detection, p.Code, p.Reason = Incremental, ByBitmap, v.Code, v.Reason
	p.verdict, p.Since = v, v.Base.Manifest.Ref()
	return nil
}
