// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
)

// A copy to a repository with other keys, or between one that has keys and one that has none. All
// objects are others there, so nothing is recognized by its name: each manifest says of what
// objects of the source its own were made, and what both sides have tells the rest.

// recoding is what is known of objects of the source that the destination has made anew.
type recoding struct {
	made map[archive.Digest]archive.Digest // of the source's objects: what they became
	maps map[archive.Digest]archive.MapRef // of to, by name
	refs map[archive.Digest]archive.Ref    // likewise, of all else that is named
	// lists are the maps of disks that both sides have, by the source's: a prune of either gives
	// maps other names, and what they say stays the same, unless one of them has lost something.
	lists map[string][]archive.MapRef
	bad   map[string]bool // keys of to that ought to stand and do not
}

func newRecoding() *recoding {
	return &recoding{
		made: make(map[archive.Digest]archive.Digest), maps: make(map[archive.Digest]archive.MapRef),
		refs: make(map[archive.Digest]archive.Ref), lists: make(map[string][]archive.MapRef), bad: make(map[string]bool),
	}
}

func listKey(maps []archive.MapRef) string {
	var b strings.Builder
	for i := range maps {
		b.Write(maps[i].Name[:])
	}
	return b.String()
}

// learn takes what a checkpoint of to says of the objects that it has, as far as they stand; theirs
// is the same checkpoint in the source, nil: it is not there, or not all of the checkpoint stands.
func (c *copier) learn(m, theirs *chain.Manifest) {
	k := c.recode
	for ref := range m.References() {
		if !c.have[ref.Key] {
			continue
		}
		k.refs[ref.Object.Name] = ref.Object
		if ref.Map != nil {
			k.maps[ref.Map.Name] = *ref.Map
		}
	}
	if f := m.CopiedFrom; f != nil && f.Repository == c.from.Config.ID {
		for _, o := range f.Objects {
			if _, ok := k.refs[o.Name]; ok {
				k.made[o.Of] = o.Name
			}
		}
	}
	if theirs == nil {
		return
	}
	for i := range m.Disks {
		// What one of them has lost since, the other may have: then their maps say different things.
		if d, ok := theirs.Disk(m.Disks[i].Name); ok && len(d.Maps) > 0 && len(d.Lost)+len(m.Disks[i].Lost) == 0 {
			k.lists[listKey(d.Maps)] = m.Disks[i].Maps
		}
	}
}

// known is what the source's object became; false: it has to be made.
func (k *recoding) known(of archive.Digest) (archive.Ref, bool) {
	name, ok := k.made[of]
	if !ok {
		return archive.Ref{}, false
	}
	ref, ok := k.refs[name]
	return ref, ok
}

// split divides the source's maps of a disk into those that have to be made, and what the others
// are in to.
func (k *recoding) split(maps []archive.MapRef) (todo, there []archive.MapRef) {
	at := len(maps)
	for i := range maps {
		if list, ok := k.lists[listKey(maps[i:])]; ok && i+len(list) <= chain.MaxMaps {
			at, there = i, list
			break
		}
	}
	// A map stands for no more than all before it do.
	for at > 0 {
		m, ok := k.maps[k.made[maps[at-1].Name]]
		if !ok {
			break
		}
		there = append([]archive.MapRef{m}, there...)
		at--
	}
	return maps[:at], there
}

// makeAnew copies a checkpoint, or with old, which stands in to, what that lacks.
func (c *copier) makeAnew(ctx context.Context, m, old *chain.Manifest) error {
	done := Checkpoint{Domain: m.Domain, Name: m.Checkpoint}
	if c.o.DryRun {
		c.estimate(m, &done)
		c.count(m, done, old != nil)
		return nil
	}
	copied, err := c.recodeAll(ctx, m, &done)
	if err != nil {
		return err
	}
	if old == nil {
		err = c.lease.Commit(ctx, copied)
	} else {
		copied.Revision, copied.Tags = old.Revision, old.Tags
		err = c.lease.Revise(ctx, copied)
	}
	if err != nil {
		return err
	}
	for ref := range copied.References() {
		c.have[ref.Key] = true
	}
	c.learn(copied, m)
	c.count(m, done, old != nil)
	return nil
}

// estimate is what a dry run can tell without reading any data.
func (c *copier) estimate(m *chain.Manifest, done *Checkpoint) {
	for i := range m.Disks {
		if todo, _ := c.recode.split(m.Disks[i].Maps); len(todo) > 0 {
			done.Bytes += m.Disks[i].StoredBytes
			for _, t := range todo {
				done.Objects++
				done.Bytes += t.Length
			}
		}
	}
	for ref := range m.References() {
		if _, ok := c.recode.known(ref.Object.Name); ref.Map == nil && !ok {
			done.Objects++
			done.Bytes += ref.Object.Length
		}
	}
}

// recodeAll makes all that a checkpoint needs and to lacks, and returns the manifest that names it.
func (c *copier) recodeAll(ctx context.Context, m *chain.Manifest, done *Checkpoint) (*chain.Manifest, error) {
	store := archive.Encrypted(objstore.Without(c.lease.Store(), c.recode.bad), archive.KeysOf(c.to.Store))
	w, err := c.writer(ctx, store)
	if err != nil {
		return nil, err
	}
	defer w.Abort() // does nothing after Finish
	for i := range m.Disks {
		c.total += m.Disks[i].StoredBytes
	}
	todo, err := c.recodeMaps(ctx, w, m)
	if err != nil {
		return nil, err
	}
	copied, err := c.recodeRest(ctx, w, m, done)
	if err != nil {
		return nil, err
	}
	made, stats, err := w.Finish(ctx)
	if err != nil {
		return nil, err
	}
	for _, note := range stats.Notes {
		c.note(note)
	}
	done.Objects += int(stats.Packs) + len(made)
	done.Bytes += stats.PackBytes
	for i, ref := range made {
		done.Bytes += ref.Length
		c.recode.made[todo[i].Name] = ref.Name
		c.recode.maps[ref.Name], c.recode.refs[ref.Name] = ref, ref.Ref
	}
	for i := range copied.Disks {
		d := &copied.Disks[i]
		fresh, there := c.recode.split(d.Maps)
		if len(fresh) > 0 {
			return nil, fmt.Errorf("a fault of this program: map %s was not made", fresh[0].Name)
		}
		d.Maps = there
	}
	copied.CopiedFrom = c.recode.record(c.from.Config.ID, m)
	return copied, nil
}

func (c *copier) writer(ctx context.Context, store objstore.Store) (*archive.Writer, error) {
	own, err := c.to.Indexing()
	if err != nil {
		return nil, err
	}
	return archive.NewWriter(ctx, store, archive.WriterOptions{TempDir: c.o.TempDir, Memory: c.to.Memory, Indexing: own})
}

// record says of what the objects of a copy of m were made.
func (k *recoding) record(repository string, m *chain.Manifest) *chain.CopiedFrom {
	f := &chain.CopiedFrom{Repository: repository, Objects: []chain.CopiedObject{}}
	seen := make(map[archive.Digest]bool)
	for ref := range m.References() {
		of := ref.Object.Name
		if name, ok := k.made[of]; ok && !seen[of] {
			seen[of] = true
			f.Objects = append(f.Objects, chain.CopiedObject{Name: name, Of: of})
		}
	}
	return f
}

// recodeMaps begins the maps that to lacks, and returns the source's in their order.
func (c *copier) recodeMaps(ctx context.Context, w *archive.Writer, m *chain.Manifest) ([]archive.MapRef, error) {
	fetcher := archive.NewFetcher(c.from.Store, archive.FetcherOptions{Memory: c.from.Memory})
	var all []archive.MapRef
	for i := range m.Disks {
		d := &m.Disks[i]
		todo, _ := c.recode.split(d.Maps)
		for j := range todo {
			// The oldest first: later ones name its chunks.
			ref := todo[len(todo)-1-j]
			opened, err := archive.OpenMap(ctx, c.from.Store, ref, 0)
			if err == nil {
				err = fits(d, slices.Index(d.Maps, ref), opened)
			}
			if err == nil {
				err = w.Recode(ctx, fetcher, opened, c.fetched)
			}
			if err != nil {
				return nil, theSource(&chain.DiskError{Disk: d.Name, Err: err})
			}
			all = append(all, ref)
		}
	}
	return all, nil
}

// fits sees that a map is one that the disk's i-th must be: else one of the two is damaged.
func fits(d *chain.Disk, i int, m *archive.Map) error {
	if err := d.Place(i).Check(m); err != nil {
		return archive.Damaged(archive.MapKey(d.Maps[i].Name), err)
	}
	return nil
}

// theSource says where damage is, and what is missing.
func theSource(err error) error {
	if errors.Is(err, objstore.ErrNotFound) || archive.IsDamage(err) {
		return fmt.Errorf("the source: %w", err)
	}
	return err
}

func (c *copier) fetched(bytes int64) {
	c.done += bytes
	c.total = max(c.total, c.done)
	if c.o.Progress != nil {
		c.o.Progress(c.done, c.total)
	}
}

// recodeRest makes what a checkpoint names beside its maps, and returns a manifest that names it.
func (c *copier) recodeRest(ctx context.Context, w *archive.Writer, m *chain.Manifest, done *Checkpoint) (*chain.Manifest, error) {
	copied := *m
	copied.RepositoryID, copied.OverVoid, copied.Origin = c.to.Config.ID, "", m.FirstOrigin()
	copied.Disks, copied.Files = slices.Clone(m.Disks), slices.Clone(m.Files)
	one := func(key string, ref *archive.Ref) (err error) {
		made, ok := c.recode.known(ref.Name)
		if !ok {
			if made, err = w.RecodeObject(ctx, c.from.Store, key, *ref); err != nil {
				return theSource(err)
			}
			c.recode.made[ref.Name], c.recode.refs[made.Name] = made.Name, made
			done.Objects++
			done.Bytes += made.Length
		}
		*ref = made
		return nil
	}
	for i := range copied.Disks {
		if err := eachRecord(&copied.Disks[i], one); err != nil {
			return nil, err
		}
	}
	for i := range copied.Files {
		ref := &copied.Files[i].Object
		if err := one(archive.FileKey(ref.Name), ref); err != nil {
			return nil, err
		}
	}
	return &copied, nil
}

// eachRecord hands out the objects of a disk that are no maps, in copies of what names them,
// without the digests of their content, which are under the source's secret.
func eachRecord(d *chain.Disk, do func(key string, ref *archive.Ref) error) error {
	d.Witnesses = slices.Clone(d.Witnesses)
	for i := range d.Witnesses {
		d.Witnesses[i].Content = archive.Digest{}
		ref := &d.Witnesses[i].Object
		if err := do(archive.BitmapKey(ref.Name), ref); err != nil {
			return err
		}
	}
	if d.Held != nil {
		held := *d.Held
		held.Content = archive.Digest{}
		d.Held = &held
		if err := do(archive.BitmapKey(held.Object.Name), &d.Held.Object); err != nil {
			return err
		}
	}
	if d.ClusterMap == nil {
		return nil
	}
	where := *d.ClusterMap
	where.Parts, where.Contents = slices.Clone(where.Parts), nil
	d.ClusterMap = &where
	for i := range where.Parts {
		if err := do(archive.ClustersKey(where.Parts[i].Name), &where.Parts[i]); err != nil {
			return err
		}
	}
	return nil
}
