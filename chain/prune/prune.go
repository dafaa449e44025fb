// SPDX-License-Identifier: Apache-2.0

package prune

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"syscall"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/objstore"
)

// Options of a prune; the zero value repacks whatever is partly unused, and waits for
// nobody.
type Options struct {
	DryRun bool // find out what would be won, and write nothing at all
	// MaxUnused bounds what may stay unused in packs that are partly used.
	MaxUnused Limit
	RepackMax int64         // bytes of chunks that are moved at most; 0: no bound
	Wait      time.Duration // how long to wait for writers that are at work
	TempDir   string        // for maps and indexes too large for memory

	// TakeOver goes on with the mark of a prune that can't be seen to have ended. If it has
	// not, it finds that out and stops.
	TakeOver bool

	// Planned is told what will be won, before anything is written.
	Planned  func(*Summary)
	Progress func(phase string, done, total int64) // one call at a time
	Note     func(msg string)

	packSize int64                // of new packs; 0: the usual
	retry    time.Duration        // before a batch is sent again that failed; 0: the usual
	batch    int                  // how many objects are deleted at once; 0: the usual
	now      func() time.Duration // nil: since the machine was started
}

// maxRounds bounds how often a prune begins anew, because not all fits into one round.
const maxRounds = 1000

type pruner struct {
	repo     *chain.Repository
	o        Options
	result   *Result
	indexing archive.Indexing // whose indexes count

	mu      sync.Mutex              // guards what several goroutines of one step fill
	damaged map[archive.Digest]bool // packs that can't be repacked
	noRoom  error                   // why nothing is rewritten until something is deleted
	failed  []error                 // damage that did not end the prune
}

// Run prunes a repository. The result comes with an error, too, and tells what was done
// until then.
//
// The error is a *chain.MarkStandsError where another prune is at work, a
// *chain.ListingError where the store's listings lie, and an archive.DamageError where
// what is needed can't be read. After it some objects may have been deleted, and never one
// that is needed.
func Run(ctx context.Context, repo *chain.Repository, o Options) (*Result, error) {
	if o.RepackMax == 0 {
		o.RepackMax = math.MaxInt64
	}
	if o.retry == 0 {
		o.retry = time.Second
	}
	if o.batch == 0 {
		o.batch = objstore.MaxBatch
	}
	if o.now == nil {
		o.now = sys.SinceBoot
	}
	p := &pruner{
		repo: repo, o: o, indexing: archive.Indexing{Seals: repo.IndexSeals()}, damaged: make(map[archive.Digest]bool),
		result: &Result{DryRun: o.DryRun, Removed: Amounts{}, Resumed: Amounts{}, Left: Amounts{}, Waiting: []Waiting{}},
	}
	err := p.run(ctx)
	p.result.Freed = max(0, p.result.Removed.Total().Bytes+p.result.Resumed.Total().Bytes-p.result.Repack.Moves)
	p.result.VersionsKept = objstore.KeepsVersions(repo.Store) // its mark was stored
	return p.result, errors.Join(append([]error{err}, p.failed...)...)
}

func (p *pruner) run(ctx context.Context) error {
	known, err := p.before(ctx)
	if err != nil {
		return err
	}
	if len(p.result.Waiting) > 0 || p.result.Unanswered {
		return nil // and its mark stands
	}
	for range maxRounds {
		state, err := p.repo.PruneState(ctx)
		if err != nil {
			return err
		}
		pl, err := p.makePlan(ctx, known, true)
		if p.prunedMeanwhile(ctx, state, err) {
			continue
		}
		if err != nil {
			return err
		}
		if p.result.Plan == nil {
			p.result.Plan = &pl.summary
			if p.o.Planned != nil {
				p.o.Planned(&pl.summary)
			}
		}
		if p.o.DryRun {
			return nil
		}
		known = pl.needs.census
		if len(pl.repack)+len(pl.merge) > 0 && p.noRoom == nil {
			if err := p.rewriteOrLeave(ctx, pl, state); err != nil {
				return err
			}
			continue
		}
		p.result.Repack.Unused = pl.summary.Repack.Unused
		before := p.result.Removed.Total()
		more, err := p.remove(ctx, pl)
		if err != nil || p.result.Unanswered || len(p.result.Waiting) > 0 {
			return errors.Join(p.noRoom, err)
		}
		if !more && (p.noRoom == nil || p.result.Removed.Total() == before) {
			return p.noRoom
		}
		p.noRoom = nil
	}
	return errors.New("there is no end of it: others store and forget as fast as this prune removes")
}

// rewriteOrLeave rewrites; packs that are damaged are left as they are from then on, and
// told of in the end.
func (p *pruner) rewriteOrLeave(ctx context.Context, pl *plan, state string) error {
	err := p.rewrite(ctx, pl)
	if p.prunedMeanwhile(ctx, state, err) {
		return nil
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		p.note("there is no room to repack; what is unneeded is deleted first: %v", err)
		p.noRoom = err
		return nil
	}
	var damage *archive.DamageError
	if !errors.As(err, &damage) {
		return err
	}
	prefix, name, ok := archive.ParseKey(damage.Object)
	if !ok || prefix != archive.PackPrefix || p.damaged[name] {
		return err
	}
	p.damaged[name] = true
	p.failed = append(p.failed, fmt.Errorf("a pack is not repacked, and stays as it is: %w", err))
	return nil
}

// prunedMeanwhile reports whether an error is that another prune has deleted what this one
// was to read, since the repository's state was this one: of what was forgotten meanwhile,
// or repacked.
func (p *pruner) prunedMeanwhile(ctx context.Context, state string, err error) bool {
	if !archive.IsDamage(err) || !errors.Is(err, objstore.ErrNotFound) {
		return false
	}
	now, serr := p.repo.PruneState(ctx)
	return serr == nil && now != state
}

// before goes on with the mark of an earlier prune that has ended, and returns the
// checkpoints that one knew of.
func (p *pruner) before(ctx context.Context) ([]string, error) {
	if !p.o.DryRun {
		if err := errors.Join(p.repo.CheckWritable(), p.repo.CheckManages("prune")); err != nil {
			return nil, err
		}
	}
	m, err := p.repo.Mark(ctx)
	if errors.Is(err, chain.ErrNoMark) {
		return nil, nil
	}
	if archive.IsDamage(err) && p.o.TakeOver && !p.o.DryRun {
		p.note("what the last prune noted counts for nothing: %v", err)
		return nil, lost(p.repo.ReplaceDamagedMark(ctx))
	}
	if err != nil {
		return nil, err
	}
	list, err := p.repo.MarkList(ctx, m)
	if archive.IsDamage(err) {
		return nil, p.withdraw(ctx, m, err)
	}
	if err != nil {
		return nil, err
	}
	if !m.Standing() {
		return list.Census, nil
	}
	if p.o.DryRun {
		p.note("a prune on %s is at work, was cut off, or waits for writers; when it has ended, this one would go on with it first", m.Host.Name)
		return list.Census, nil
	}
	if m, err = p.checkEnded(ctx, m); err != nil {
		return nil, err
	}
	if m, err = p.repo.TakeOver(ctx, m); err != nil {
		return nil, lost(err)
	}
	v, err := takeInventory(ctx, p.repo, func(done int64) { p.progress("listing", done, 0) })
	if err != nil {
		return nil, err
	}
	removed, err := p.finish(ctx, m, list, v, nil)
	p.result.Resumed = removed
	return list.Census, err
}

// withdraw ends a mark whose list can't be read, if its owner has ended: what it listed
// nothing needed, and what of that is still there is found again.
func (p *pruner) withdraw(ctx context.Context, m *chain.Mark, why error) error {
	p.note("what the last prune noted can't be read, and counts for nothing: %v", why)
	if !m.Standing() {
		return nil
	}
	if p.o.DryRun {
		return nil
	}
	m, err := p.checkEnded(ctx, m)
	if err == nil {
		m, err = p.repo.TakeOver(ctx, m)
	}
	if err == nil {
		_, err = p.repo.EndMark(ctx, m)
	}
	return lost(err)
}

// checkEnded returns an error unless the owner of a mark has ended, as far as that is known
// or was said.
func (p *pruner) checkEnded(ctx context.Context, m *chain.Mark) (*chain.Mark, error) {
	m, ended, err := p.repo.MarkEnded(ctx, m)
	if err == nil && !ended && !p.o.TakeOver {
		err = &chain.MarkStandsError{Mark: m, Delay: objstore.MaxDelay(p.repo.Store)}
	}
	return m, err
}

// ErrLostMark says that another prune has the mark by now, and goes on with it.
var ErrLostMark = errors.New("another prune has taken over what this one had marked, and goes on with it: this one sends no further delete")

// lost tells that the mark is another's by now, where it was changed.
func lost(err error) error {
	if errors.Is(err, chain.ErrMarkChanged) {
		return ErrLostMark
	}
	return err
}

func (p *pruner) progress(phase string, done, total int64) {
	if p.o.Progress != nil {
		p.o.Progress(phase, done, total)
	}
}

func (p *pruner) note(format string, args ...any) {
	if p.o.Note != nil {
		p.o.Note(fmt.Sprintf(format, args...))
	}
}
