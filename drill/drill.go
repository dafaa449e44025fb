// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/internal/scratch"
	"github.com/imgbackup/imgbackup/qemu"
	"github.com/imgbackup/imgbackup/restore"
	"github.com/imgbackup/imgbackup/view"
)

// Options are the settings of a run.
type Options struct {
	Dir     string // an existing folder for scratch data and sockets
	Tool    string // the program and its version, for the record
	AskedBy string // a person or a job; may be empty
	Run     string // UUID of the run
	Resume  *State // what it has proven before it was cut off; nil: it begins
	Note    func(text string)
	// Told is told of progress: so many more bytes of the guest in a step. It may be
	// called by several goroutines at once, and may call [Drill.Save].
	Told func(step string, n int64)
	// Kept is told of the files that a step has left in its folder, before they are
	// removed; nil: nobody wants them. It returns them as they are recorded.
	Kept func(t *Target, step, dir string) ([]record.Kept, error)
}

// Target is a checkpoint to be drilled.
type Target struct {
	Manifest *chain.Manifest
	Disks    []string // only these; none: all
	ChosenBy string
	Require  []string // steps that must pass; none: all that apply but boot
	Steps    []Step   // in the order of [record.StepNames]
	Whole    bool     // how long the first byte of each disk takes is measured, too
	Limits   Limits
	History  []*chain.Manifest // all of the domain's, oldest first
}

// folderPrefix begins the names of a drill's folders.
const folderPrefix = "imgbackup-drill."

// Drill is a run of drills, which share what they have proven. It must be closed.
type Drill struct {
	repo   *chain.Repository
	o      Options
	self   chain.Process
	prover *prover
	img    qemu.Img
	folder *scratch.Folder

	restore func(context.Context, *chain.Repository, *chain.Manifest, []restore.Target, restore.Options) (*restore.Result, error)
}

// New begins a run.
func New(repo *chain.Repository, o Options) (*Drill, error) {
	self, err := repo.Self()
	if err != nil {
		return nil, err
	}
	d := &Drill{repo: repo, o: o, self: self, prover: newProver(repo), restore: restore.Run}
	if o.Resume != nil {
		if err := d.resume(o.Resume); err != nil {
			return nil, err
		}
	}
	if d.folder, err = scratch.Make(o.Dir, folderPrefix); err != nil {
		return nil, err
	}
	return d, nil
}

// Close removes all that the run has made.
func (d *Drill) Close() error { return d.folder.Remove() }

// socketDir is an empty folder for sockets.
func (d *Drill) socketDir() (string, error) { return d.folder.SocketDir("nbd") }

// Run drills one checkpoint. The record is complete whatever the verdict is. An error
// says that the run cannot go on: it was interrupted, and the record is of what was done.
func (d *Drill) Run(ctx context.Context, t *Target) (*record.Record, error) {
	u := &under{d: d, t: t, r: d.newRecord(t)}
	err := u.run(ctx)
	u.r.Ended = now()
	u.judge()
	return u.r, err
}

func now() time.Time { return time.Now().UTC().Round(0) }

// under is a checkpoint that is being drilled.
type under struct {
	d *Drill
	t *Target
	m *chain.Manifest // as it is by now
	r *record.Record
	s *server

	restored []Restored
	ends     []func()        // what is to be done at the end
	skipped  map[string]bool // steps to which nothing applied
	cut      error           // why the chunks could not be had; nil: they could, or are damaged
	mu       sync.Mutex
}

func (u *under) run(ctx context.Context) (err error) {
	slot, err := u.d.repo.Slot(ctx, u.t.Manifest.Domain, u.t.Manifest.Checkpoint)
	if err == nil && (slot.Manifest == nil || slot.Manifest.UUID != u.t.Manifest.UUID) {
		err = &chain.GoneError{Domain: u.t.Manifest.Domain, Checkpoint: u.t.Manifest.Checkpoint}
	}
	if err != nil {
		return u.none(ctx, err)
	}
	u.take(slot.Manifest, slot.Digest().String())
	u.skipped = make(map[string]bool)
	u.s = &server{repo: u.d.repo, m: u.m, disks: u.disks(), dir: u.d.socketDir, note: u.d.o.Note}
	defer func() {
		for _, end := range u.ends {
			end()
		}
		u.s.stop()
		_, serr := u.d.folder.Sub("restored") // the next one needs its room
		err = errors.Join(err, serr)
	}()
	u.r.RPO = rpo(u.t.History, u.r.Begun)
	if u.t.Whole {
		u.firstByte(ctx)
	}
	for i, step := range u.t.Steps {
		if err := u.step(ctx, step); err != nil {
			return err
		}
		if u.cut != nil { // whoever else asks would wait, and fail, too
			u.untried(u.t.Steps[i+1:])
			break
		}
	}
	return nil
}

// untried says of steps that they were not tried, since the chunks could not be had.
func (u *under) untried(steps []Step) {
	for _, step := range steps {
		u.r.Steps = append(u.r.Steps, record.Step{
			Step: step.Name(), Status: record.Skipped, Begun: now(),
			Reason: "not tried, since the chunks could not be had", WhatToDo: todoError(u.cut),
		})
	}
}

// firstByte measures how long it takes until each disk can be read. What fails is met by
// the steps.
func (u *under) firstByte(ctx context.Context) {
	begun := time.Now()
	var names []string
	for _, d := range u.disks() {
		names = append(names, d.Name)
	}
	v, err := view.Open(ctx, u.d.repo, u.m, names, view.Options{NoAhead: true})
	if err != nil {
		return
	}
	defer v.Close()
	for _, d := range v.Disks {
		if err := d.ReadAt(ctx, make([]byte, min(512, d.Size())), 0); err != nil {
			return
		}
	}
	ms := time.Since(begun).Milliseconds()
	u.r.RTO.FirstByte = &ms
}

// none says of every step that it could not be done.
func (u *under) none(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	res := Skip(err.Error(), todoError(err))
	if archive.IsDamage(err) {
		res = Fail(err.Error(), todoDamage)
	}
	for i, step := range u.t.Steps {
		one := record.Step{Step: step.Name(), Status: res.Status, Reason: text(res.Reason), WhatToDo: res.WhatToDo, Begun: now()}
		if i > 0 && res.Status == record.Failed {
			one.Status, one.Reason = record.Skipped, "the checkpoint cannot be read"
		}
		u.r.Steps = append(u.r.Steps, one)
	}
	return nil
}

// take takes the manifest as the checkpoint's.
func (u *under) take(m *chain.Manifest, digest string) {
	u.m = m
	u.r.Revision, u.r.Manifest = m.Revision, digest
	u.r.Disks, u.r.LeftOut = nil, nil
	for i := range m.Disks {
		disk := &m.Disks[i]
		if len(u.t.Disks) > 0 && !slices.Contains(u.t.Disks, disk.Name) {
			u.r.LeftOut = append(u.r.LeftOut, disk.Name)
			continue
		}
		one := record.Disk{Disk: disk.Name, Size: disk.Size, Maps: []string{}}
		for _, ref := range disk.Maps {
			one.Maps = append(one.Maps, ref.Name.String())
		}
		u.r.Disks = append(u.r.Disks, one)
	}
}

// disks are those that are drilled.
func (u *under) disks() (all []*chain.Disk) {
	for _, one := range u.r.Disks {
		if disk, ok := u.m.Disk(one.Disk); ok {
			all = append(all, disk)
		}
	}
	return all
}

// repackings is how often a step begins anew because the checkpoint was repacked.
const repackings = 5

// step does one step, and records it. An error is the context's.
func (u *under) step(ctx context.Context, step Step) error {
	one := record.Step{Step: step.Name(), Begun: now()}
	begun := time.Now()
	res, err := u.try(ctx, step, &one)
	for range repackings {
		var repacked *repackedError
		if !errors.As(err, &repacked) {
			break
		}
		if err = u.repacked(ctx, repacked.newer); err == nil {
			res, err = u.try(ctx, step, &one)
		}
	}
	one.Duration = time.Since(begun).Milliseconds()
	if err != nil {
		res.Status, res.Reason, res.WhatToDo = record.Skipped, err.Error(), todoError(err)
		if ctx.Err() != nil {
			res.Reason, res.WhatToDo = "it was interrupted", "run the same command again"
		}
		if one.Step == record.StepChunks {
			u.cut = err
		}
	}
	one.Status, one.Reason, one.WhatToDo = res.Status, text(res.Reason), text(res.WhatToDo)
	one.Bytes, one.Details = res.Bytes, texts(res.Details)
	if res.NotApplicable && res.Status == record.Skipped {
		u.skipped[one.Step] = true
	}
	if res.Boot > 0 {
		ms := res.Boot.Milliseconds()
		u.r.RTO.Boot = &ms
	}
	if len(res.Programs) > 0 && u.r.Programs == nil {
		u.r.Programs = make(map[string]string)
	}
	maps.Copy(u.r.Programs, texts(res.Programs))
	u.r.Steps = append(u.r.Steps, one)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// try runs a step with folders of its own.
func (u *under) try(ctx context.Context, step Step, one *record.Step) (res Result, err error) {
	s := &Subject{
		Repo: u.d.repo, Manifest: u.m, Disks: u.disks(), Restored: u.restored, Limits: u.t.Limits,
		Note: u.d.o.Note, Told: u.d.o.Told, serve: u.serve(ctx), view: u.view(ctx), fault: u.s.fault, read: u.s.read,
		restoreTook: func(ms int64) { u.r.RTO.Restore = &ms },
		qemuImg:     u.d.img, atEnd: func(end func()) { u.ends = append(u.ends, end) },
		near: func(near nearby) *server {
			return &server{repo: u.d.repo, m: u.m, disks: u.disks(), dir: u.d.socketDir, note: u.d.o.Note, near: near}
		},
	}
	if s.Scratch, err = u.d.folder.Sub("scratch"); err != nil {
		return Result{}, err
	}
	if s.Keep, err = u.d.folder.Sub("keep"); err != nil {
		return Result{}, err
	}
	u.s.forget() // what the step before has met
	res, err = step.Run(ctx, s)
	u.restored = s.Restored
	if u.d.o.Kept != nil {
		kept, kerr := u.d.o.Kept(u.t, step.Name(), s.Keep)
		one.Kept, err = kept, errors.Join(err, kerr)
	}
	_, serr := u.d.folder.Sub("scratch")
	return res, errors.Join(err, serr)
}

// serve serves the disks for as long as the checkpoint's drill lasts.
func (u *under) serve(whole context.Context) func(context.Context) (*Served, error) {
	return func(context.Context) (*Served, error) {
		u.mu.Lock()
		defer u.mu.Unlock()
		return u.s.start(whole)
	}
}

// view is the view that serve serves.
func (u *under) view(whole context.Context) func(context.Context) (*view.Checkpoint, error) {
	return func(ctx context.Context) (*view.Checkpoint, error) {
		if _, err := u.serve(whole)(ctx); err != nil {
			return nil, err
		}
		return u.s.view, nil
	}
}

// repacked goes on with the manifest's next revision. The record stays that of the one whose
// chunks were fetched, if they were: what a prune has put in their place nobody has proven.
func (u *under) repacked(ctx context.Context, newer *chain.Manifest) error {
	slot, err := u.d.repo.Slot(ctx, newer.Domain, newer.Checkpoint)
	if err != nil {
		return err
	}
	if slot.Manifest == nil || slot.Manifest.UUID != newer.UUID {
		return &chain.GoneError{Domain: newer.Domain, Checkpoint: newer.Checkpoint}
	}
	if _, done := u.r.Step(record.StepChunks); done {
		u.m = slot.Manifest
		return nil
	}
	u.take(slot.Manifest, slot.Digest().String())
	return nil
}

// todoError is what a person should do about what lies elsewhere.
func todoError(err error) string {
	var gone *chain.GoneError
	switch {
	case errors.As(err, &gone):
		return todoGone
	case noSpace(err), errors.As(err, new(*roomError)):
		return "give more room by --scratch DIR, or go without by --no-scratch"
	}
	return "see to what the reason says, and drill again: nothing is known to be wrong with the checkpoint"
}
