// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/chain"
)

// The steps of the writing order, as [Hooks.Step] names them.
const (
	StepPlan      = "plan"      // look at images and repository, write nothing
	StepIntent    = "intent"    // the intent is about to be written
	StepAdd       = "add"       // a bitmap is about to be added to an image
	StepAdded     = "added"     // every bitmap stands
	StepClone     = "clone"     // the images are about to be cloned
	StepReleased  = "released"  // a VM may have the images, and the clones are read
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
// the error says that an intent was left to be settled by the next run: which it is
// where the images were cloned, and a VM may have them.
func Run(ctx context.Context, repo *chain.Repository, req Request, hooks Hooks) (*Result, error) {
	return run(ctx, repo, req, hooks, toArchive)
}

// run is a whole run; to sets the session's destination.
func run(ctx context.Context, repo *chain.Repository, req Request, hooks Hooks, to func(*session)) (*Result, error) {
	begin := time.Now()
	var notes []string
	outer := hooks.Note
	hooks.Note = func(msg string) {
		notes = append(notes, msg)
		if outer != nil {
			outer(msg)
		}
	}
	s, err := newSession(repo, req, hooks, to)
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
	if s.records {
		s.lookEarly(ctx)
		if err := s.settle(ctx); err != nil {
			return nil, err
		}
	}
	for try := 1; ; try++ {
		result, err := s.attempt(ctx)
		var changed *changedError
		if try == attempts || s.released || !errors.As(err, &changed) && !errors.As(err, new(*baseGone)) {
			return result, err
		}
		s.hooks.note("%v; beginning again", err)
	}
}

// attempt is one go through the writing order.
type attempt struct {
	*session
	giveUp context.CancelCauseFunc // ends it
	plan   *Plan
	intent *chain.Intent
	stands bool // the manifest, once it has been created

	checked map[*chain.Manifest]bool // they stand as they were read, since our lease does
}

func (s *session) attempt(ctx context.Context) (*Result, error) {
	// What the plan has to read is read until the very end.
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	s.lockedSince = time.Time{}
	s.hooks.step(StepPlan)
	plan, err := s.decide(ctx)
	if err != nil {
		return nil, err
	}
	if plan.Unchanged != nil {
		return s.skipOpen(ctx, plan)
	}
	if err := s.guard(ctx); err != nil {
		return nil, err
	}
	a := &attempt{session: s, giveUp: giveUp, plan: plan, checked: make(map[*chain.Manifest]bool)}
	if s.records {
		return a.record(ctx)
	}
	return a.withoutTrace(ctx)
}

// decide looks at repository and images, and writes nothing. The images are open then,
// under QEMU's locks.
func (s *session) decide(ctx context.Context) (*Plan, error) {
	if err := s.loadHistory(ctx); err != nil {
		return nil, err
	}
	if err := s.open(ctx); err != nil {
		return nil, err
	}
	if err := s.confirmHistory(ctx); err != nil {
		return nil, err
	}
	if err := s.noteOtherDomain(ctx); err != nil {
		return nil, err
	}
	if s.req.SkipUnchanged {
		s.rememberIdentity()
		if plan, err := s.skipUntouched(ctx); plan != nil || err != nil {
			return plan, err
		}
	}
	plan, err := s.makePlan(ctx, nil)
	if err == nil && s.req.SkipUnchanged {
		err = s.skipPlanned(ctx, plan)
	}
	if err != nil {
		return nil, err
	}
	return plan, s.to.accept(plan)
}

// record adds the bitmaps, writes what goes to the destination, and makes the checkpoint.
func (a *attempt) record(ctx context.Context) (*Result, error) {
	var err error
	if a.intent, err = a.newIntent(a.plan); err != nil {
		return nil, err
	}
	if err := a.unlock(); err != nil {
		return nil, err
	}
	var result *Result
	err = a.underLease(ctx, "backup", true, func(ctx context.Context) error {
		a.intent.UUID = a.lease.UUID() // so that whoever settles the one finds the other
		a.nameClones()
		result, err = a.underIntent(ctx)
		return err
	})
	if err == errNothingNew { // and nothing went wrong since
		return a.skip(ctx, a.plan)
	}
	if err != nil {
		return nil, err
	}
	return result, a.to.after(ctx, a.plan)
}

// withoutTrace gives the disks to the destination, and writes nothing to images and
// repository. The images have been locked since they were planned for.
func (a *attempt) withoutTrace(ctx context.Context) (*Result, error) {
	defer a.boundLockTime()()
	a.rememberIdentity()
	a.begin()
	m, _, err := a.to.write(ctx, a.plan)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = a.to.commit(ctx, a.plan, m)
	}
	if err == nil {
		err = a.to.after(ctx, a.plan)
	}
	if err != nil {
		return nil, lockTime(ctx, err)
	}
	return &Result{Plan: a.plan}, nil
}

// underLease writes while a lease tells others that somebody does; announced: and that the
// checkpoint's name, which is free, is about to be taken. That lease is taken beside what
// write does first. It goes whatever comes of that, even when we were cancelled.
func (s *session) underLease(ctx context.Context, what string, announced bool, write func(context.Context) error) error {
	purpose := fmt.Sprintf("%s of %s, checkpoint %s", what, s.req.Domain, s.point.name)
	hold := s.repo.Hold
	if announced {
		hold = func(ctx context.Context, purpose string) (*chain.Hold, error) {
			return s.repo.HoldBeside(ctx, purpose, s.req.Domain, s.point.name)
		}
	}
	lease, err := hold(ctx, purpose)
	if err != nil {
		return err
	}
	s.lease = lease
	err = lease.Explain(write(lease.Context()))
	tidying, cancel := chain.Tidying(ctx)
	defer cancel()
	if lerr := lease.Release(tidying); lerr != nil && err == nil {
		s.stays("the "+what+" is complete, but its lease could not be removed", lerr)
	}
	return err
}

// underIntent writes while an intent says which bitmaps are added to which images.
func (a *attempt) underIntent(ctx context.Context) (*Result, error) {
	a.hooks.step(StepIntent)
	if !a.intent.Empty() {
		if err := a.repo.PutIntent(ctx, a.intent); err != nil {
			return nil, err
		}
	}
	stored := !a.intent.Empty()
	result, err := a.write(ctx)
	a.dropClones(ctx)
	if err != nil {
		return nil, a.giveBack(ctx, err)
	}
	a.hooks.step(StepRetired)
	if stored {
		a.endIntent(ctx)
	}
	a.hooks.step(StepDone)
	return result, nil
}

// endIntent removes the intent of an attempt whose checkpoint stands, or leaves of it what the
// next run is to do.
func (a *attempt) endIntent(ctx context.Context) {
	tidying, cancel := chain.Tidying(ctx)
	defer cancel()
	if rest := a.rest(); rest != nil {
		if err := a.repo.PutIntent(tidying, rest); err != nil {
			a.stays("the backup is complete, but which old bitmaps the next one is to remove could not be stored", err)
		}
		return
	}
	if err := a.repo.DeleteIntent(tidying, a.intent.Domain, a.intent.UUID); err != nil {
		a.stays("the backup is complete, but its intent could not be removed", err)
	}
}

// giveBack undoes what an attempt that failed has done to the images; unless the checkpoint
// stands, or may stand: then bitmaps and intent stay, and the next run finds out and
// settles.
func (a *attempt) giveBack(ctx context.Context, err error) error {
	var unknown *chain.UnknownOutcomeError
	if a.stands || errors.As(err, &unknown) {
		return err
	}
	if a.released {
		return a.leave(err)
	}
	if uerr := a.undo(context.WithoutCancel(ctx), a.intent, err); uerr != nil {
		return errors.Join(err, uerr)
	}
	return err
}

// write adds the bitmaps and does the rest under QEMU's locks.
func (a *attempt) write(ctx context.Context) (*Result, error) {
	if p, ok := a.to.(preparer); ok {
		defer p.drop()
	}
	if err := a.add(ctx); err != nil {
		return nil, err
	}
	a.hooks.step(StepAdded)
	if err := a.open(ctx); err != nil {
		return nil, err
	}
	stop := a.boundLockTime()
	defer stop()
	result, err := a.writeLocked(ctx, stop)
	if err != nil && !a.stands {
		err = lockTime(ctx, err)
	}
	return result, err
}

// preparer is a destination that can do something while bitmaps are added.
type preparer interface {
	// prepare asks the repository, or stores, what does not depend on guest data. What it
	// begins goes on in ctx; group is over when the bitmaps are there.
	prepare(ctx, group context.Context, plan *Plan) error
	// drop ends what it began.
	drop()
}

// add adds the bitmaps, the lease and the intent standing, and does beside that what waits
// for the repository. Nothing of the repository is relied on before Begun has returned nil.
func (a *attempt) add(ctx context.Context) error {
	if err := a.lease.Stands(ctx); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := a.lease.Begun(gctx); err != nil {
			return err
		}
		g.Go(func() error { return a.checkBases(gctx) })
		g.Go(func() error { return a.lookAgain(gctx) })
		if p, ok := a.to.(preparer); ok {
			return p.prepare(ctx, gctx, a.plan)
		}
		return nil
	})
	added := a.addBitmaps(gctx, a.plan)
	if added != nil {
		g.Go(func() error { return added }) // which ends the rest
	}
	err := g.Wait()
	if added == nil || errors.Is(added, err) || errors.Is(added, context.Canceled) {
		return err
	}
	return errors.Join(err, added) // a qemu-img that did harm must be told of, whatever came first
}

// writeLocked reads, stores and commits. stop ends the limit on the time under locks.
func (a *attempt) writeLocked(ctx context.Context, stop func()) (*Result, error) {
	if err := a.verifyAdded(a.plan); err != nil {
		return nil, err
	}
	for i, d := range a.disks {
		d.clusters.keep(a.plan.Disks[i].AddsBitmap && slices.ContainsFunc(d.before, recorded))
	}
	a.rememberIdentity()
	if err := a.release(ctx, stop); err != nil {
		return nil, err
	}
	if err := a.planAgain(ctx); err != nil {
		return nil, err
	}
	if err := a.checkBases(ctx); err != nil {
		return nil, err
	}
	a.begin()
	m, stats, err := a.to.write(ctx, a.plan)
	if err != nil && !errors.Is(err, errNothingNew) {
		return nil, err
	}
	if err := a.compareIdentity(nothingCommitted); err != nil {
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var before *Before
	if a.req.Import != nil {
		before = a.before(m)
	}
	a.hooks.step(StepCommit)
	if err := a.to.commit(ctx, a.plan, m); err != nil {
		return nil, err
	}
	a.stands = true
	return &Result{
		Manifest: m, Plan: a.plan, Stats: stats, Audits: a.audits(),
		Cloned: a.released, NotCloned: a.notCloned, Locked: a.locked, Before: before,
	}, nil
}

// checkBases sees that what the plan builds on stands as it was read, now that our lease
// does: nothing of it is pruned any more before we have committed.
func (a *attempt) checkBases(ctx context.Context) error {
	for _, p := range a.plan.Disks {
		m := p.base.Manifest
		if m == nil || a.checked[m] {
			continue
		}
		a.checked[m] = true
		err := a.lease.CheckStands(ctx, m)
		if errors.As(err, new(*chain.GoneError)) || errors.As(err, new(*chain.RevisedError)) || errors.As(err, new(*chain.TakenError)) {
			return &baseGone{err}
		}
		if err == nil {
			err = a.lease.RelyOn(ctx, m)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// begin tells that the plan is being carried out.
func (a *attempt) begin() {
	a.noteLacking(a.plan)
	a.states.drop()
	a.hooks.step(StepRead)
}

// create makes the checkpoint.
func (s *session) create(ctx context.Context, m *chain.Manifest) error {
	if err := s.lease.Commit(ctx, m); err != nil {
		return err
	}
	s.hooks.step(StepCommitted)
	return nil
}

// boundLockTime gives the attempt up when the images have been locked for as long
// as the caller allows, unless stop is called before. The attempt's context has no
// deadline that others could see: they would give up before it, for reasons of
// their own.
func (a *attempt) boundLockTime() (stop func()) {
	if a.req.MaxLock <= 0 {
		return func() {}
	}
	timer := time.AfterFunc(a.req.MaxLock, func() { a.giveUp(&LockTimeError{a.req.MaxLock}) })
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
func (a *attempt) planAgain(ctx context.Context) error {
	before := a.plan
	plan, err := a.makePlan(ctx, before)
	if err != nil {
		return err
	}
	for i, p := range plan.Disks {
		q := before.Disks[i]
		if p.worseThan(q) {
			return &chain.DiskError{Disk: p.Disk, Err: imageChanged(p.Path, "%s", p.Reason)}
		}
		if p.Detection == ByContent && q.Detection == ByContent && p.base.Manifest.UUID == q.base.Manifest.UUID && !q.verdict.Trusted {
			// Adding a bitmap makes QEMU drop those that it finds invalid: what
			// was seen before it says why none was believed.
			p.Code, p.Reason = q.Code, q.Reason
			p.verdict.DistrustAll = p.verdict.DistrustAll || q.verdict.DistrustAll
		}
	}
	a.plan = plan
	return nil
}
