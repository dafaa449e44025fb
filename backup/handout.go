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

// OpenDisk is one disk whose data goes elsewhere than into the repository. Its
// image is open, under QEMU's locks, and stays what it is until the function
// that got it returns.
type OpenDisk struct {
	Plan    *DiskPlan
	Image   *qcow2.Image
	Changes bitmapstore.Runs // all that may differ from Plan.Since; the whole disk in a full backup
}

// Consumer reads the disks, for as long as it has not returned. It must not close the
// images.
type Consumer func(ctx context.Context, disks []OpenDisk) error

// Receiver takes the disks of a push backup: all of them, or none.
type Receiver interface {
	// Accept refuses disks that it cannot take, before anything is written
	// anywhere. It is called for every plan; what comes to Write may still
	// differ.
	Accept(disks []OpenDisk) error
	// Write makes the disks' data durable, where nobody takes it for finished
	// yet. It is called once.
	Write(ctx context.Context, disks []OpenDisk) error
	// Publish makes what was written appear, or fails and leaves nothing. The
	// images are known to have stayed the same until then.
	Publish() error
	// Retract takes back what Publish did, since the checkpoint could not be
	// made.
	Retract() error
}

// Record adds a checkpoint without data: a bitmap to every disk, and a manifest that
// says so. A disk that can hold none fails it.
func Record(ctx context.Context, repo *chain.Repository, req Request, hooks Hooks) (*Result, error) {
	return run(ctx, repo, req, hooks, toNothing)
}

// Push gives the disks to out, full or incremental since a checkpoint of the
// repository. If the request names a checkpoint, it is created for the same
// instant, once out has everything; else nothing is written to images and
// repository. After a [*chain.UnknownOutcomeError] what was published stays.
func Push(ctx context.Context, repo *chain.Repository, req Request, hooks Hooks, out Receiver) (*Result, error) {
	return run(ctx, repo, req, hooks, toReceiver(out))
}

// PushDryRun returns the plan that [Push] would carry out, and writes nothing.
// out is asked whether it would accept the disks.
func PushDryRun(ctx context.Context, repo *chain.Repository, req Request, hooks Hooks, out Receiver) (*Plan, error) {
	return dryRun(ctx, repo, req, hooks, toReceiver(out))
}

// Pull gives the disks to an out that offers them for others to read, full or
// incremental as in [Push]: a checkpoint that the request names is created before
// out begins, and stays whatever comes of it.
func Pull(ctx context.Context, repo *chain.Repository, req Request, hooks Hooks, out Consumer) (*Result, error) {
	return run(ctx, repo, req, hooks, toConsumer(out))
}

// handout is a destination that the repository is not: it gets a checkpoint without data
// at most. By itself, nothing is given out.
type handout struct{ *session }

func newHandout(s *session, records bool) *handout {
	s.records, s.onlyBitmaps = records, true
	s.leaveFilesUnread()
	return &handout{s}
}

func toNothing(s *session) { s.to = newHandout(s, true) }

func toReceiver(out Receiver) func(*session) {
	return func(s *session) { s.to = &pushed{newHandout(s, s.req.Checkpoint != ""), out} }
}

func toConsumer(out Consumer) func(*session) {
	return func(s *session) { s.to = &pulled{newHandout(s, s.req.Checkpoint != ""), out} }
}

// choose takes an increment only where one was asked for.
func (s *handout) choose(ctx context.Context, d *disk, p *DiskPlan) error {
	seen := Seen{d.req.Disk, s.judge(d)}
	if s.records {
		var err error
		if p.sound, err = seen.Judge.Sound(ctx, false); err != nil {
			return err
		}
	}
	if d.req.Mode != Incremental {
		p.Code, p.Reason = trust.ReasonRequested, "no incremental was asked for"
		return nil
	}
	if d.req.Bitmap != "" {
		return s.chooseBitmapNamed(ctx, d, p, seen)
	}
	v, err := seen.ChangedSince(ctx, d.req.Since)
	var refused *NotTrustedError
	if errors.As(err, &refused) {
		refused.Hint = "a full needs no checkpoint"
	}
	if err != nil {
		return err
	}
	p.Mode, p.Detection, p.Code, p.Reason = Incremental, ByBitmap, v.Code, v.Reason
	p.verdict, p.Since = v, v.Base.Manifest.Ref()
	s.noteAdopted(d, v)
	return nil
}

func (s *handout) accept(*Plan) error { return nil }

func (s *handout) write(ctx context.Context, plan *Plan) (*chain.Manifest, archive.Stats, error) {
	if !s.records {
		return nil, archive.Stats{}, nil
	}
	m, err := s.record(ctx, plan)
	return m, archive.Stats{}, err
}

// record stores what is known of the disks without their data, and describes the
// checkpoint.
func (s *handout) record(ctx context.Context, plan *Plan) (*chain.Manifest, error) {
	o, err := s.req.writer(s.repo)
	if err != nil {
		return nil, err
	}
	o.Contents = chain.Contents(s.history)
	w, err := archive.NewWriter(ctx, s.lease.Store(), o)
	if err != nil {
		return nil, err
	}
	defer w.Abort() // does nothing after Finish
	m := s.manifest(chain.KindCheckpoint, plan.parent)
	for i, d := range s.disks {
		p := plan.Disks[i]
		if !p.AddsBitmap {
			continue
		}
		rec := s.manifestDisk(d, p)
		if err := s.recordBitmaps(ctx, d, p, w, &rec); err != nil {
			return nil, &chain.DiskError{Disk: p.Disk, Err: err}
		}
		if rec.Held, err = recordHeld(ctx, d, w, &rec); err != nil {
			return nil, &chain.DiskError{Disk: p.Disk, Err: fmt.Errorf("recording where it holds data: %w", err)}
		}
		m.Disks = append(m.Disks, rec)
	}
	// Of the domain's files only the definition, which is at hand, describes the
	// checkpoint: the others are data.
	if m.Files, err = s.storeFiles(ctx, w); err != nil {
		return nil, err
	}
	if _, _, err := w.Finish(ctx); err != nil {
		return nil, err
	}
	s.hooks.step(StepStored)
	return m, nil
}

// recordHeld stores where a disk holds data, the one thing that is known of its
// content without an archive: data that vanishes without a mark in the bitmap
// shows later that the bitmap lies. Only the images' tables count: holes of files come and
// go by themselves.
func recordHeld(ctx context.Context, d *disk, w *archive.Writer, rec *chain.Disk) (*chain.BitmapRecord, error) {
	const sector = 512
	data := d.image.Mapped(ctx).Round(sector, rec.Size)
	bytes, err := data.Bytes()
	if err != nil {
		return nil, err
	}
	held := &chain.BitmapRecord{Name: rec.Bitmap, Granularity: sector, Size: rec.Size, DirtyBytes: bytes}
	held.Object, held.Content, err = w.PutBitmap(ctx, bitmapstore.Header{Name: held.Name, Granularity: sector, Size: held.Size}, data)
	return held, err
}

// commit creates the manifest. The images stay open: they may be needed still.
func (s *handout) commit(ctx context.Context, _ *Plan, m *chain.Manifest) error {
	if m == nil {
		return nil
	}
	return s.create(ctx, m)
}

func (s *handout) after(context.Context, *Plan) error { return nil }

// opened are the disks as a plan gives them out.
func (s *handout) opened(plan *Plan) []OpenDisk {
	var all []OpenDisk
	for i, d := range s.disks {
		p := plan.Disks[i]
		changes := p.verdict.Dirty
		if p.Mode == Full {
			changes = bitmapstore.Between(0, p.VirtualSize)
		}
		all = append(all, OpenDisk{Plan: p, Image: d.image, Changes: changes})
	}
	return all
}

// give lets out have the disks, and sees that they stayed as they were. consequence is
// what it means if they did not.
func (s *handout) give(ctx context.Context, plan *Plan, out Consumer, consequence string) error {
	// What was read of an image that changed meanwhile is worth nothing, however
	// the reading went.
	err := out(ctx, s.opened(plan))
	return errors.Join(err, s.compareIdentity(consequence))
}

// pushed is the destination of [Push].
type pushed struct {
	*handout
	out Receiver
}

func (s *pushed) accept(plan *Plan) error {
	return s.out.Accept(s.opened(plan))
}

func (s *pushed) write(ctx context.Context, plan *Plan) (*chain.Manifest, archive.Stats, error) {
	if err := s.give(ctx, plan, s.out.Write, nothingCommitted); err != nil {
		return nil, archive.Stats{}, err
	}
	return s.handout.write(ctx, plan)
}

// commit publishes what the receiver has, and then creates the manifest: a checkpoint
// whose files are not there would be worse than files without their checkpoint.
func (s *pushed) commit(ctx context.Context, plan *Plan, m *chain.Manifest) error {
	if err := s.out.Publish(); err != nil {
		return err
	}
	err := s.handout.commit(ctx, plan, m)
	var unknown *chain.UnknownOutcomeError
	if err != nil && !errors.As(err, &unknown) {
		err = errors.Join(err, s.out.Retract())
	}
	return err
}

// pulled is the destination of [Pull].
type pulled struct {
	*handout
	out Consumer
}

// after is the whole of it: the checkpoint stands before anything is read.
func (s *pulled) after(ctx context.Context, plan *Plan) error {
	consequence := ""
	if s.records {
		consequence = "; the checkpoint was made before, and stays"
	}
	return s.give(ctx, plan, s.out, consequence)
}
