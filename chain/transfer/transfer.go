// SPDX-License-Identifier: Apache-2.0

// Package transfer copies checkpoints from one repository to another: only what
// is missing there, proven on the way.
//
// A checkpoint arrives as it was made: all that its manifest names is stored
// before the manifest is, which is created last and only if no other stands
// under its name. So a copy that was cut off leaves nothing but objects without
// a checkpoint, and the next one goes on with them, after they have been proven.
package transfer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
)

// Options of a copy.
type Options struct {
	Domains  []string // empty: all
	DryRun   bool     // find out what is missing, and write nothing
	TempDir  string   // for large objects on their way; empty: the system's
	Progress func(done, total int64)
	Note     func(msg string)
}

// Result tells what was copied, or with DryRun would be.
type Result struct {
	DryRun      bool         `json:"dry_run"`
	Checkpoints []Checkpoint `json:"checkpoints"`
	Objects     int          `json:"objects"`
	Bytes       int64        `json:"bytes"`
	Present     int          `json:"present"` // checkpoints that were there already
}

// Checkpoint is one that was copied.
type Checkpoint struct {
	Domain  string `json:"domain"`
	Name    string `json:"checkpoint"`
	Objects int    `json:"objects"`
	Bytes   int64  `json:"bytes"`
}

// copies is how many objects are on their way at once.
const copies = 4

// checkApart refuses a repository in another one's folder: its objects might take the
// other's places.
func checkApart(from, to objstore.Store) error {
	for _, pair := range [][2]objstore.Store{{from, to}, {to, from}} {
		if p, ok := objstore.As[objstore.Placed](pair[1]); ok {
			if err := objstore.CheckOutside(pair[0], p.Dir()); err != nil {
				return err
			}
		}
	}
	return nil
}

// Copy copies the checkpoints of from that to does not have, oldest first. A
// checkpoint of the same name and another uuid is a [*chain.TakenError]. What is
// damaged in from ends the copy with an [*archive.DamageError]; the checkpoints
// before it have arrived.
func Copy(ctx context.Context, from, to *chain.Repository, o Options) (result *Result, err error) {
	c := &copier{
		from: from, to: to, o: o, have: make(map[string]bool),
		result: &Result{DryRun: o.DryRun, Checkpoints: []Checkpoint{}},
	}
	if from.Config.ID == to.Config.ID {
		return nil, errors.New("source and destination are the same repository")
	}
	if err := checkApart(from.Store, to.Store); err != nil {
		return nil, err
	}
	if len(o.Domains) == 0 {
		if c.o.Domains, err = from.Domains(ctx); err != nil {
			return nil, err
		}
	}
	var work []*chain.Manifest
	for _, domain := range c.o.Domains {
		missing, err := c.missing(ctx, domain)
		if err != nil {
			return nil, err
		}
		work = append(work, missing...)
	}
	if !o.DryRun && len(work) > 0 {
		lease, err := to.TakeLease(ctx, "copy from repository "+from.Config.ID)
		if err != nil {
			return nil, err
		}
		defer func() {
			ctx, cancel := chain.Tidying(ctx)
			defer cancel()
			lerr := to.DeleteLease(ctx, lease.UUID)
			if errors.Is(lerr, fs.ErrPermission) && o.Note != nil {
				o.Note("the copy's lease stays, since nothing may be removed from the repository: " + lerr.Error())
				lerr = nil
			}
			err = errors.Join(err, lerr)
		}()
	}
	for i, m := range work {
		if err := c.checkpoint(ctx, m); err != nil {
			return nil, fmt.Errorf("checkpoint %s of %s (%d of %d): %w", m.Checkpoint, m.Domain, i+1, len(work), err)
		}
	}
	return c.result, nil
}

type copier struct {
	from, to *chain.Repository
	o        Options
	result   *Result

	mu          sync.Mutex
	have        map[string]bool // keys that stand in to, proven or named by a checkpoint there
	done, total int64
}

// missing returns the domain's checkpoints that to does not have, oldest first,
// and remembers what those that it has name.
func (c *copier) missing(ctx context.Context, domain string) ([]*chain.Manifest, error) {
	theirs, damaged, err := c.from.Manifests(ctx, domain)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(damaged...); err != nil {
		return nil, fmt.Errorf("the source: %w", err)
	}
	if len(theirs) == 0 {
		return nil, &chain.NoDomainError{Domain: domain}
	}
	if err := checkParents(ctx, c.from, domain, theirs); err != nil {
		return nil, fmt.Errorf("the source: %w", err)
	}
	there, damaged, err := c.to.Manifests(ctx, domain)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(damaged...); err != nil {
		return nil, fmt.Errorf("the destination: %w", err)
	}
	present := make(map[string]bool)
	for _, m := range there {
		present[m.UUID] = true
		if err := c.remember(ctx, m); err != nil {
			return nil, err
		}
	}
	var missing []*chain.Manifest
	for _, m := range theirs {
		if present[m.UUID] {
			c.result.Present++
			continue
		}
		if slices.ContainsFunc(there, func(t *chain.Manifest) bool { return t.Checkpoint == m.Checkpoint }) {
			return nil, &chain.TakenError{Domain: domain, Checkpoint: m.Checkpoint}
		}
		missing = append(missing, m)
	}
	return missing, nil
}

// checkParents finds out whether a listing has left out a checkpoint that another
// one names, and that would not be copied then.
func checkParents(ctx context.Context, r *chain.Repository, domain string, ms []*chain.Manifest) error {
	var names []string
	var parents []chain.CheckpointRef
	for _, m := range ms {
		names = append(names, m.Checkpoint)
		if m.Parent != nil {
			parents = append(parents, *m.Parent)
		}
	}
	return r.CheckParents(ctx, domain, names, parents)
}

// remember notes what a checkpoint of to names and has, with its length. Where
// a pack is gone, the maps that name it do not count, so that a copy of another
// checkpoint with the same maps brings it back.
func (c *copier) remember(ctx context.Context, m *chain.Manifest) error {
	objects, err := c.to.Needs(ctx, m, c.known)
	if err != nil {
		return fmt.Errorf("the destination's checkpoint %s: %w", m.Checkpoint, err)
	}
	var stand []chain.Object
	whole := true
	err = c.each(ctx, objects, func(ctx context.Context, o chain.Object) error {
		ok, err := archive.Stands(ctx, c.to.Store, o.Key, o.Ref.Length)
		c.mu.Lock()
		defer c.mu.Unlock()
		if ok {
			stand = append(stand, o)
		}
		whole = whole && ok
		return err
	})
	if err != nil {
		return err
	}
	for _, o := range stand {
		if whole || isPack(o.Key) {
			c.have[o.Key] = true
		}
	}
	if !whole && c.o.Note != nil {
		c.o.Note(fmt.Sprintf("checkpoint %s of %s in the destination lacks objects: imgbackup check tells which",
			m.Checkpoint, m.Domain))
	}
	return nil
}

// known reports whether an object stands in to; a map that does has its packs.
func (c *copier) known(key string) bool { return c.have[key] }

// each does something with every object, several at once, until the first error.
func (c *copier) each(
	ctx context.Context, objects []chain.Object, do func(context.Context, chain.Object) error,
) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(copies)
	for _, o := range objects {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error { return do(gctx, o) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx) // nil, unless the caller ended the loop
}

// checkpoint copies one checkpoint.
func (c *copier) checkpoint(ctx context.Context, m *chain.Manifest) error {
	todo, err := c.from.Needs(ctx, m, c.known)
	if err != nil {
		return err
	}
	done := Checkpoint{Domain: m.Domain, Name: m.Checkpoint, Objects: len(todo)}
	for _, o := range todo {
		done.Bytes += o.Ref.Length
	}
	c.total += done.Bytes
	// Packs first: a map that stands has its packs.
	first := slices.IndexFunc(todo, func(o chain.Object) bool { return !isPack(o.Key) })
	if first < 0 {
		first = len(todo)
	}
	for _, part := range [][]chain.Object{todo[:first], todo[first:]} {
		if err := c.each(ctx, part, c.object); err != nil {
			return err
		}
	}
	if !c.o.DryRun {
		// The manifest is the same checkpoint's, described in another repository.
		copied := *m
		copied.RepositoryID = c.to.Config.ID
		if err := c.to.Commit(ctx, &copied); err != nil {
			return err
		}
	}
	c.result.Checkpoints = append(c.result.Checkpoints, done)
	c.result.Objects += done.Objects
	c.result.Bytes += done.Bytes
	return nil
}

func isPack(key string) bool {
	prefix, _, ok := archive.ParseKey(key)
	return ok && prefix == archive.PackPrefix
}

func (c *copier) object(ctx context.Context, o chain.Object) error {
	if !c.o.DryRun {
		if err := archive.CopyObject(ctx, c.from.Store, c.to.Store, o.Key, o.Ref, c.o.TempDir); err != nil {
			if errors.Is(err, objstore.ErrNotFound) || archive.IsDamage(err) {
				err = fmt.Errorf("the source: %w", err)
			}
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.have[o.Key] = true
	c.done += o.Ref.Length
	if c.o.Progress != nil {
		c.o.Progress(c.done, c.total)
	}
	return nil
}
