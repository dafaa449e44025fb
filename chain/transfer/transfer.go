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
	"os"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/split"
)

// Options of a copy.
type Options struct {
	Domains []string // empty: all
	// Checkpoints are the only ones to be copied, of the one domain that is named then;
	// empty: all. Newest, if not 0, are that many of each domain, by sequence.
	Checkpoints []string
	Newest      int
	// Choose, if any, returns the uuids of those of a domain's checkpoints that are to be
	// copied.
	Choose func(ctx context.Context, domain string) (uuids []string, err error)

	// ReadData proves what the destination has by reading all of it, and brings back
	// what is damaged; else only its length is looked at.
	ReadData bool

	DryRun   bool   // find out what is missing, and write nothing
	TempDir  string // for large objects on their way; empty: [spool.TempDir]
	Progress func(done, total int64)
	Note     func(msg string)
}

// Result tells what was copied, or with DryRun would be.
type Result struct {
	DryRun      bool         `json:"dry_run"`
	Checkpoints []Checkpoint `json:"checkpoints"`
	Healed      []Checkpoint `json:"healed,omitempty"` // that were there and lacked objects, or had damaged ones
	Objects     int          `json:"objects"`
	Bytes       int64        `json:"bytes"`
	Present     int          `json:"present"` // checkpoints that were there already
	Drills      int          `json:"drills"`  // records of drills

	// Tagged are checkpoints that were there and lacked tags; Forgotten is of how many
	// checkpoints that were forgotten in the source there is now known what they left.
	Tagged    int `json:"tagged"`
	Forgotten int `json:"forgotten"`
}

// Checkpoint is one that was copied.
type Checkpoint struct {
	Domain  string `json:"domain"`
	Name    string `json:"checkpoint"`
	Objects int    `json:"objects"`
	Bytes   int64  `json:"bytes"`
}

// copies is how many objects are on their way at once between places that are near.
const copies = 4

// checkApart refuses a repository in another one's folder: its objects might take the
// other's places.
func checkApart(from, to objstore.Store) error {
	for _, pair := range [][2]objstore.Store{{from, to}, {to, from}} {
		if p, ok := objstore.As[objstore.Placed](pair[1]); ok {
			if err := objstore.CheckApart(pair[0], p.Dir()); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkDifferent refuses a repository and itself. One id may stand in two places: a
// folder that was copied by other means, as rsync, can be brought up to date.
func checkDifferent(from, to *chain.Repository) error {
	if from.Config.ID != to.Config.ID {
		return nil
	}
	a, isDir := objstore.As[objstore.Placed](from.Store)
	b, otherIs := objstore.As[objstore.Placed](to.Store)
	switch {
	case isDir != otherIs:
		return nil
	case !isDir:
		return usage.Errorf("source and destination have one id, %s, and nothing tells whether they are the same repository", from.Config.ID)
	}
	x, err := os.Stat(a.Dir())
	if err != nil {
		return err
	}
	y, err := os.Stat(b.Dir())
	if err != nil {
		return err
	}
	if os.SameFile(x, y) {
		return errors.New("source and destination are the same repository")
	}
	return nil
}

// Copy copies the checkpoints of from that to does not have, oldest first, and brings
// back what those lack that it has. A checkpoint of the same name and another uuid is
// a [*chain.TakenError]. What is damaged in from keeps back the checkpoints that need
// it, and no other: the error is an [*archive.DamageError] then, and comes with the
// result.
func Copy(ctx context.Context, from, to *chain.Repository, o Options) (result *Result, err error) {
	c := &copier{
		from: from, to: to, o: o, have: make(map[string]bool), chosen: make(map[string][]string), standing: make(map[string][]*chain.Manifest),
		result: &Result{DryRun: o.DryRun, Checkpoints: []Checkpoint{}},
		source: split.New(from.Store, from.Memory), there: split.New(to.Store, from.Memory),
	}
	if err := checkDifferent(from, to); err != nil {
		return nil, err
	}
	if !archive.KeysOf(from.Store).Same(archive.KeysOf(to.Store)) {
		c.recode = newRecoding()
	}
	if err := checkApart(from.Store, to.Store); err != nil {
		return nil, err
	}
	if len(o.Domains) == 0 {
		if c.o.Domains, err = from.Domains(ctx); err != nil {
			return nil, err
		}
	}
	if !o.DryRun {
		// What is there counts only when it is seen under the lease.
		lease, err := to.Hold(ctx, "copy from repository "+from.Config.ID)
		if err != nil {
			return nil, err
		}
		c.lease = lease
		defer func() {
			tidying, cancel := chain.Tidying(ctx)
			defer cancel()
			lerr := lease.Release(tidying)
			if errors.Is(lerr, fs.ErrPermission) && o.Note != nil {
				o.Note("the copy's lease stays, since nothing may be removed from the repository: " + lerr.Error())
				lerr = nil
			}
			err = errors.Join(lease.Explain(err), lerr)
		}()
		ctx = lease.Context()
	}
	var work []*chain.Manifest
	for _, domain := range c.o.Domains {
		missing, err := c.missing(ctx, domain)
		if err != nil {
			return nil, err
		}
		work = append(work, missing...)
	}
	for i, m := range slices.Concat(c.heal, work) {
		err := c.asItIs(ctx, m, i < len(c.heal))
		if errors.As(err, new(*chain.GoneError)) {
			c.note("the source: " + err.Error())
			continue
		}
		if err == nil {
			continue
		}
		err = fmt.Errorf("checkpoint %s of %s: %w", m.Checkpoint, m.Domain, err)
		if !archive.IsDamage(err) {
			return nil, err
		}
		c.damaged = append(c.damaged, err)
	}
	if err := errors.Join(c.carryTags(ctx), c.carryForgotten(ctx)); err != nil {
		return nil, err
	}
	if err := c.copyDrills(ctx); err != nil {
		return nil, err
	}
	return c.result, errors.Join(c.damaged...)
}

// asItIs copies a checkpoint, also where a prune of the source puts other objects in the
// place of those that it named when it was read.
func (c *copier) asItIs(ctx context.Context, m *chain.Manifest, there bool) error {
	for try := 0; ; try++ {
		err := c.checkpoint(ctx, m, there)
		if err == nil {
			return nil
		}
		newer, err := c.from.Reread(ctx, m, err)
		if newer == nil || try == rereads {
			return err
		}
		m = newer
	}
}

// rereads is how often a checkpoint is begun anew that was repacked meanwhile.
const rereads = 5

func (c *copier) note(msg string) {
	if c.o.Note != nil {
		c.o.Note(msg)
	}
}

type copier struct {
	from, to *chain.Repository
	source   objstore.Store // from's, from which objects are read
	there    objstore.Store // to's, of which what stands is proven
	lease    *chain.Hold    // in to; nil in a dry run
	o        Options
	result   *Result
	recode   *recoding           // nil: objects are copied as they are stored
	heal     []*chain.Manifest   // the source's, of checkpoints that are not whole in to
	chosen   map[string][]string // by domain: the uuids of the checkpoints that are asked for
	retag    []tagging
	standing map[string][]*chain.Manifest // by domain: that stand in to
	damaged  []error                      // what is damaged in the source, and manifests that are in to

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
	for _, err := range damaged {
		if !archive.IsDamage(err) {
			return nil, fmt.Errorf("the source: %w", err)
		}
		c.damaged = append(c.damaged, fmt.Errorf("the source: %w", err))
	}
	if len(theirs) == 0 && len(damaged) > 0 {
		return nil, nil
	}
	if len(theirs) == 0 {
		return nil, &chain.NoDomainError{Domain: domain}
	}
	if err := checkParents(ctx, c.from, domain, theirs); err != nil {
		return nil, fmt.Errorf("the source: %w", err)
	}
	if theirs, err = c.wanted(ctx, domain, theirs); err != nil {
		return nil, err
	}
	for _, m := range theirs {
		c.chosen[domain] = append(c.chosen[domain], m.UUID)
	}
	there, damaged, err := c.to.Manifests(ctx, domain)
	if err != nil {
		return nil, err
	}
	broken, err := c.brokenThere(damaged)
	if err != nil {
		return nil, err
	}
	c.standing[domain] = there
	present := make(map[string]bool)
	for _, m := range there {
		present[m.UUID] = true
		at := slices.IndexFunc(theirs, func(t *chain.Manifest) bool { return t.UUID == m.UUID })
		if at >= 0 {
			c.lackTags(m, theirs[at].Tags)
		}
		whole, err := c.remember(ctx, m)
		if err != nil {
			return nil, err
		}
		if c.recode != nil {
			var same *chain.Manifest
			if whole && at >= 0 {
				same = theirs[at]
			}
			c.learn(m, same)
		}
		if whole {
			continue
		}
		switch {
		case at >= 0 && c.recode != nil && losesMore(theirs[at], m):
			// Its place would be taken by what the source has left, and both may have what the other has not.
			c.note(fmt.Sprintf("checkpoint %s of %s in the destination lacks objects, and stays as it is: the source has lost some of it, too", m.Checkpoint, m.Domain))
		case at >= 0:
			c.heal = append(c.heal, theirs[at])
		case c.o.Note != nil:
			c.o.Note(fmt.Sprintf("checkpoint %s of %s in the destination lacks objects: imgbackup check tells which", m.Checkpoint, m.Domain))
		}
	}
	var missing []*chain.Manifest
	for _, m := range theirs {
		if present[m.UUID] {
			c.result.Present++
			continue
		}
		if broken[chain.ManifestKey(domain, m.Checkpoint)] {
			continue // there may be another one under the name
		}
		if slices.ContainsFunc(there, func(t *chain.Manifest) bool { return t.Checkpoint == m.Checkpoint }) {
			return nil, &chain.TakenError{Domain: domain, Checkpoint: m.Checkpoint}
		}
		missing = append(missing, m)
	}
	return missing, nil
}

// losesMore reports whether one of a checkpoint's disks has lost something that it may have in
// another repository.
func losesMore(m, other *chain.Manifest) bool {
	return slices.ContainsFunc(m.Disks, func(d chain.Disk) bool {
		o, ok := other.Disk(d.Name)
		return len(d.Lost) > 0 && (!ok || !slices.Equal(d.Lost, o.Lost))
	})
}

// brokenThere are the manifests in to that are damaged, which keep back nothing else.
func (c *copier) brokenThere(damaged []error) (map[string]bool, error) {
	broken := make(map[string]bool)
	for _, err := range damaged {
		err = fmt.Errorf("the destination: %w", err)
		var damage *archive.DamageError
		if !errors.As(err, &damage) {
			return nil, err
		}
		broken[damage.Object] = true
		c.damaged = append(c.damaged, err)
	}
	return broken, nil
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

// wanted are those of a domain's checkpoints that are to be copied.
func (c *copier) wanted(ctx context.Context, domain string, all []*chain.Manifest) ([]*chain.Manifest, error) {
	for _, name := range c.o.Checkpoints {
		if !slices.ContainsFunc(all, func(m *chain.Manifest) bool { return m.Checkpoint == name }) {
			if _, err := c.from.Manifest(ctx, domain, name); err != nil {
				return nil, err // that it is not there, or damaged
			}
		}
	}
	if len(c.o.Checkpoints) > 0 {
		all = slices.DeleteFunc(all, func(m *chain.Manifest) bool { return !slices.Contains(c.o.Checkpoints, m.Checkpoint) })
	}
	if c.o.Choose != nil {
		uuids, err := c.o.Choose(ctx, domain)
		if err != nil {
			return nil, err
		}
		all = slices.DeleteFunc(all, func(m *chain.Manifest) bool { return !slices.Contains(uuids, m.UUID) })
	}
	if n := c.o.Newest; n > 0 {
		all = all[max(0, len(all)-n):]
	}
	return all, nil
}

// remember notes what a checkpoint of to names and has, with its length, and reports
// whether that is all of it. Where a pack is gone, the maps that name it do not count,
// so that a copy of a checkpoint with the same maps brings it back.
func (c *copier) remember(ctx context.Context, m *chain.Manifest) (whole bool, err error) {
	objects, err := c.to.Needs(ctx, m, c.known)
	if archive.IsDamage(err) {
		return false, nil // a map of it is missing or damaged
	}
	if err != nil {
		return false, fmt.Errorf("the destination's checkpoint %s: %w", m.Checkpoint, err)
	}
	var stand []chain.Object
	whole = true
	err = c.each(ctx, objects, func(ctx context.Context, o chain.Object) error {
		ok, err := c.stands(ctx, o)
		c.mu.Lock()
		defer c.mu.Unlock()
		if ok {
			stand = append(stand, o)
		}
		whole = whole && ok
		if c.recode != nil && !ok && err == nil {
			c.recode.bad[o.Key] = true
		}
		return err
	})
	if err != nil {
		return false, err
	}
	for _, o := range stand {
		if whole || isPack(o.Key) {
			c.have[o.Key] = true
		}
	}
	return whole, nil
}

// stands reports whether an object is there, as far as that is asked for.
func (c *copier) stands(ctx context.Context, o chain.Object) (bool, error) {
	if c.o.ReadData {
		return archive.Proves(ctx, c.there, o.Key, o.Ref)
	}
	return archive.Stands(ctx, c.to.Store, o.Key, o.Ref.Length)
}

// known reports whether an object stands in to; a map that does has its packs.
func (c *copier) known(key string) bool { return c.have[key] }

// each does something with every object, several at once, until the first error.
func (c *copier) each(
	ctx context.Context, objects []chain.Object, do func(context.Context, chain.Object) error,
) error {
	g, gctx := errgroup.WithContext(ctx)
	// Some are proven and stored while others come.
	atOnce := max(copies, objstore.Connections(c.from.Store)*3/2, objstore.Connections(c.to.Store))
	g.SetLimit(c.from.Memory.Count(atOnce, 2))
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

// checkpoint copies one checkpoint, or what one lacks that is there.
func (c *copier) checkpoint(ctx context.Context, m *chain.Manifest, there bool) error {
	if c.recode != nil {
		var old *chain.Manifest
		if there {
			at := slices.IndexFunc(c.standing[m.Domain], func(s *chain.Manifest) bool { return s.UUID == m.UUID })
			old = c.standing[m.Domain][at]
		}
		return c.makeAnew(ctx, m, old)
	}
	todo, err := c.from.Needs(ctx, m, c.known)
	if err != nil {
		return err
	}
	done := Checkpoint{Domain: m.Domain, Name: m.Checkpoint}
	for _, o := range todo {
		c.total += o.Ref.Length
	}
	if !c.o.DryRun {
		// Those that are marked to be deleted are struck with one request, or waited for.
		var keys []string
		for _, o := range todo {
			keys = append(keys, o.Key)
		}
		if err := c.lease.Rely(ctx, keys...); err != nil {
			return err
		}
	}
	// Packs first: a map that stands has its packs.
	first := slices.IndexFunc(todo, func(o chain.Object) bool { return !isPack(o.Key) })
	if first < 0 {
		first = len(todo)
	}
	for _, part := range [][]chain.Object{todo[:first], todo[first:]} {
		if err := c.each(ctx, part, func(ctx context.Context, o chain.Object) error { return c.object(ctx, o, &done) }); err != nil {
			return err
		}
	}
	if !c.o.DryRun && !there {
		// The manifest is the same checkpoint's, described in another repository.
		copied := *m
		copied.RepositoryID, copied.OverVoid, copied.Origin = c.to.Config.ID, "", m.FirstOrigin()
		if err := c.lease.Commit(ctx, &copied); err != nil {
			return err
		}
	}
	c.count(m, done, there)
	return nil
}

// count takes what was done for a checkpoint into the result.
func (c *copier) count(m *chain.Manifest, done Checkpoint, there bool) {
	switch {
	case !there:
		c.standing[m.Domain] = append(c.standing[m.Domain], m)
		c.result.Checkpoints = append(c.result.Checkpoints, done)
	case done.Objects > 0: // and not with another one that lacked the same
		c.result.Healed = append(c.result.Healed, done)
	}
	c.result.Objects += done.Objects
	c.result.Bytes += done.Bytes
}

func isPack(key string) bool {
	prefix, _, ok := archive.ParseKey(key)
	return ok && prefix == archive.PackPrefix
}

// object copies an object, if it is not there and whole, and counts it in done.
func (c *copier) object(ctx context.Context, o chain.Object, done *Checkpoint) error {
	stored, err := c.copyObject(ctx, o)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if stored {
		done.Objects++
		done.Bytes += o.Ref.Length
	}
	c.have[o.Key] = true
	c.done += o.Ref.Length
	if c.o.Progress != nil {
		c.o.Progress(c.done, c.total)
	}
	return nil
}

// copyObject reports whether the object was stored, or would be.
func (c *copier) copyObject(ctx context.Context, o chain.Object) (bool, error) {
	if c.o.DryRun {
		stands, err := c.stands(ctx, o)
		return !stands, err
	}
	stored, err := archive.CopyObject(ctx, c.source, c.lease.Store(), o.Key, o.Ref, c.o.TempDir)
	if errors.Is(err, objstore.ErrNotFound) || archive.IsDamage(err) {
		err = fmt.Errorf("the source: %w", err)
	}
	return stored, err
}
