// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
)

// The part of a check that reads what the repository says about its data.

func (c *check) checkConfig(ctx context.Context) error {
	again, err := c.repo.Reopen(ctx)
	switch {
	case err == nil && again.Config.ID != c.repo.Config.ID:
		err = archive.Damaged(chain.ConfigKey, errors.New("it is no longer the one that was opened"))
	case errors.Is(err, chain.ErrNotRepository):
		err = archive.Damaged(chain.ConfigKey, err)
	}
	if rerr := c.record(KindConfig, chain.ConfigKey, 0, err); rerr != nil || again == nil {
		return rerr
	}
	for _, l := range again.Lowered {
		err := archive.Damaged(l.Key, fmt.Errorf("somebody has put something on top of it: version %s is what counts", l.ID))
		if err := c.record(KindConfig, l.Key, 0, err); err != nil {
			return err
		}
	}
	return nil
}

// checkKeyFiles looks at what others open the repository with.
func (c *check) checkKeyFiles(ctx context.Context) error {
	wrong, err := c.repo.CheckKeyFiles(ctx)
	if err != nil {
		return err
	}
	return c.recordUnusable(KindConfig, wrong)
}

// readState sees what prunes have done until now.
func (c *check) readState(ctx context.Context) (err error) {
	c.state, err = c.repo.PruneState(ctx)
	return err
}

func (c *check) listDomains(ctx context.Context) (err error) {
	if c.domains = c.o.Domains; c.all() {
		c.domains, err = c.repo.Domains(ctx)
	}
	return err
}

// domainsAtOnce is how many domains are listed at once: a far store answers each as late as all.
const domainsAtOnce = 32

// named is a checkpoint that is listed.
type named struct {
	of   *listedDomain
	name string
}

// listedDomain is a domain with what a listing shows of it, and what its manifests name.
type listedDomain struct {
	domain  string
	names   []string
	times   map[string]time.Time
	parents []chain.CheckpointRef
}

// readManifests proves the manifests and notes what they refer to.
func (c *check) readManifests(ctx context.Context) error {
	covered, err := c.covered(ctx)
	if err != nil {
		return err
	}
	domains := make([]*listedDomain, len(c.domains))
	for i, domain := range c.domains {
		domains[i] = &listedDomain{domain: domain}
	}
	if err := c.eachDomain(ctx, domains, c.listCheckpoints); err != nil {
		return err
	}
	var all []named
	for _, d := range domains {
		for _, name := range d.names {
			all = append(all, named{d, name})
		}
	}
	err = each(ctx, c, "checkpoints", all, one, func(ctx context.Context, n named) error { return c.readManifest(ctx, n, covered) })
	if err != nil {
		return err
	}
	return c.eachDomain(ctx, domains, func(ctx context.Context, d *listedDomain) error {
		return c.repo.CheckParents(ctx, d.domain, d.names, d.parents)
	})
}

// eachDomain does something with every domain, several at once.
func (c *check) eachDomain(ctx context.Context, domains []*listedDomain, do func(context.Context, *listedDomain) error) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(domainsAtOnce)
	for _, d := range domains {
		g.Go(func() error { return do(gctx, d) })
	}
	return g.Wait()
}

func (c *check) listCheckpoints(ctx context.Context, d *listedDomain) error {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		d.names, err = c.repo.Checkpoints(gctx, d.domain)
		return err
	})
	g.Go(func() (err error) {
		d.times, err = c.repo.StoredTimes(gctx, d.domain)
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if len(d.names) == 0 && !c.all() {
		return &chain.NoDomainError{Domain: d.domain}
	}
	return nil
}

func (c *check) readManifest(ctx context.Context, n named, covered map[string]chain.Revision) error {
	key := chain.ManifestKey(n.of.domain, n.name)
	m, err := c.repo.Manifest(ctx, n.of.domain, n.name)
	below, is := covered[key]
	if is {
		m = below.Manifest
		err = archive.Damaged(below.Key, fmt.Errorf("somebody has put something on top of it: version %s is what counts", below.ID))
	}
	if errors.Is(err, chain.ErrNoCheckpoint) {
		return nil // forgotten since it was listed
	}
	if err == nil || is && m != nil {
		m.Stored = n.of.times[n.name]
		c.refer(m)
	}
	if err == nil && m.Parent != nil {
		c.mu.Lock()
		n.of.parents = append(n.of.parents, *m.Parent)
		c.mu.Unlock()
	}
	return c.record(KindManifest, key, 0, err)
}

// covered are the manifests with something on top that does not count, by key, where the store
// keeps versions for as long as it matters.
func (c *check) covered(ctx context.Context) (map[string]chain.Revision, error) {
	if c.repo.Config.ObjectLock == nil {
		return nil, nil
	}
	all, err := c.repo.Covered(ctx, "")
	if err != nil {
		return nil, err
	}
	covered := make(map[string]chain.Revision)
	for _, v := range all {
		covered[v.Key] = v
	}
	return covered, nil
}

// refer notes what a manifest refers to.
func (c *check) refer(m *chain.Manifest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.report.Checkpoints++
	c.seeSigner(m)
	disks := make(map[*chain.Disk]int32, len(m.Disks))
	for i := range m.Disks {
		d := &m.Disks[i]
		if n := d.LostBytes(); n > 0 {
			c.report.Lost = append(c.report.Lost, Lost{m.Domain, m.Checkpoint, d.Name, len(d.Lost), n})
		}
		disks[d] = c.addDisk(diskID{domain: m.Domain, checkpoint: m.Checkpoint, disk: d.Name, size: d.Size})
	}
	for ref := range m.References() {
		by := usedBy{disk: disks[ref.Disk], newest: ref.Place.Newest, full: ref.Place.Full}
		switch {
		case ref.Map != nil:
			addUse(c.maps, *ref.Map, by)
		case ref.Bitmap != nil:
			addUse(c.bitmaps, bitmapUse{ref.Object, ref.Bitmap.Header()}, by)
		case ref.Part != nil:
			addUse(c.clusters, *ref.Part, by)
		case ref.File != nil:
			// What a file is for stands where a disk's name stands.
			by.disk = c.addDisk(diskID{domain: m.Domain, checkpoint: m.Checkpoint, disk: ref.File.Called()})
			addUse(c.files, ref.File.FileRef, by)
		}
	}
}

func (c *check) addDisk(d diskID) int32 {
	c.disks = append(c.disks, d)
	return int32(len(c.disks) - 1)
}

func addUse[K comparable](uses map[K]*use, key K, by usedBy) {
	u := uses[key]
	if u == nil {
		u = &use{}
		uses[key] = u
	}
	u.by = append(u.by, by)
}

// checkMaps proves all maps, and gathers the packs that they name.
func (c *check) checkMaps(ctx context.Context) error {
	refs := slices.Collect(maps.Keys(c.maps))
	return each(ctx, c, "maps", refs, one, func(ctx context.Context, ref archive.MapRef) error {
		store, err := c.mapStore(ctx, ref)
		if err == nil {
			err = archive.VerifyMap(ctx, store, ref, true)
		}
		if err == nil {
			err = c.gatherPacks(ctx, store, ref)
		}
		return c.record(KindMap, archive.MapKey(ref.Name), ref.Length, err)
	})
}

func (c *check) gatherPacks(ctx context.Context, store objstore.Store, ref archive.MapRef) error {
	m, err := archive.OpenMap(ctx, store, ref, 0)
	if err != nil {
		return err
	}
	for _, by := range c.maps[ref].by {
		d := c.disks[by.disk]
		place := chain.MapPlace{Disk: d.disk, Size: d.size, Newest: by.newest, Full: by.full}
		if err := place.Check(m); err != nil {
			return archive.Damaged(archive.MapKey(ref.Name), fmt.Errorf("%s: %w", d, err))
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range m.Packs() {
		c.packs[p] = false
	}
	return nil
}

// checkBitmaps proves all bitmaps.
func (c *check) checkBitmaps(ctx context.Context) error {
	uses := slices.Collect(maps.Keys(c.bitmaps))
	return each(ctx, c, "bitmaps", uses, one, func(ctx context.Context, b bitmapUse) error {
		_, err := archive.OpenBitmap(ctx, c.repo.Store, b.object, b.header)
		return c.record(KindBitmap, archive.BitmapKey(b.object.Name), b.object.Length, err)
	})
}

// checkClusters proves all cluster maps.
func (c *check) checkClusters(ctx context.Context) error {
	parts := slices.Collect(maps.Keys(c.clusters))
	return each(ctx, c, "cluster maps", parts, one, func(ctx context.Context, p chain.ClusterPart) error {
		err := archive.VerifyClusters(ctx, c.repo.Store, p.Object, p.Header)
		return c.record(KindClusters, archive.ClustersKey(p.Object.Name), p.Object.Length, err)
	})
}

// checkFiles proves all files, and their content.
func (c *check) checkFiles(ctx context.Context) error {
	refs := slices.Collect(maps.Keys(c.files))
	return each(ctx, c, "files", refs, one, func(ctx context.Context, f archive.FileRef) error {
		err := archive.CopyFile(ctx, c.repo.Store, f, io.Discard)
		return c.record(KindFile, archive.FileKey(f.Object.Name), f.Object.Length, err)
	})
}

// checkWriters looks at what those leave who are at work, or were killed.
func (c *check) checkWriters(ctx context.Context) error {
	if err := c.checkIntents(ctx); err != nil {
		return err
	}
	return c.checkLeases(ctx)
}

func (c *check) checkIntents(ctx context.Context) error {
	intents, unusable, err := c.repo.AllIntents(ctx)
	if err != nil {
		return err
	}
	for _, in := range intents {
		if !c.wants(in.Domain) {
			continue
		}
		if in.Complete {
			c.note("the next backup of domain %s on host %s removes bitmaps that the one of checkpoint %s has left in images which a VM could have",
				in.Domain, in.Host.Name, in.Checkpoint)
		} else {
			c.noteUnfinished(in)
		}
		if err := c.record(KindIntent, in.Key(), 0, nil); err != nil {
			return err
		}
	}
	return c.recordUnusable(KindIntent, unusable)
}

func (c *check) noteUnfinished(in *chain.Intent) {
	c.note("a backup of domain %s on host %s (checkpoint %s, begun %v) has not finished:"+
		" it is running, or the next one settles it (imgbackup leases)",
		in.Domain, in.Host.Name, in.Checkpoint, in.Created)
}

func (c *check) checkLeases(ctx context.Context) error {
	if !c.all() {
		return nil
	}
	leases, unusable, err := c.repo.Leases(ctx)
	if err != nil {
		return err
	}
	for _, l := range leases {
		c.note("host %s has held a lease since %v (%s)", l.Host.Name, l.Started, l.Purpose)
		if err := c.record(KindLease, l.Key(), 0, nil); err != nil {
			return err
		}
	}
	return c.recordUnusable(KindLease, unusable)
}

// checkMark looks at the mark of a prune. What it lists nothing needs.
func (c *check) checkMark(ctx context.Context) error {
	if !c.all() {
		return nil
	}
	switch _, err := c.repo.Mark(ctx); {
	case chain.Unusable(err):
		return c.record(KindMark, objectOf(err), 0, err)
	case errors.Is(err, chain.ErrNoMark):
		return nil
	default:
		return err
	}
}

// recordUnusable records objects that are damaged or too new, as far as they
// are of the domains that are checked.
func (c *check) recordUnusable(kind string, errs []error) error {
	for _, err := range errs {
		key := objectOf(err)
		if k := chain.ParseKey(key); k.Domain != "" && !c.wants(k.Domain) {
			continue
		}
		if err := c.record(kind, key, 0, err); err != nil {
			return err
		}
	}
	return nil
}

// objectOf is the key of the object that is damaged or too new.
func objectOf(err error) string {
	var damage *archive.DamageError
	var newer *chain.NewerError
	switch {
	case errors.As(err, &damage):
		return damage.Object
	case errors.As(err, &newer):
		return newer.Object
	}
	return ""
}
