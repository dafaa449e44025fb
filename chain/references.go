// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"fmt"
	"iter"
	"slices"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/imgbackup/imgbackup/archive"
)

// What a checkpoint needs: the objects that its manifest names, which are
// [Manifest.References], and the packs that its maps name. Together they are
// what [Repository.Needs] lists. Whoever checks, copies or keeps checkpoints
// asks here, so that no kind of object is ever forgotten.

// Reference is an object that a manifest names.
type Reference struct {
	Key    string
	Object archive.Ref
	Disk   *Disk // nil: of a file

	// Exactly one of these is set.
	Map    *archive.MapRef
	Bitmap *BitmapRecord
	Part   *ClusterPart
	File   *File

	Place MapPlace // of a map
}

// References yields the objects that the manifest names: the maps, bitmaps and cluster
// maps of each disk, disk by disk, and then the files. One that is named twice comes twice.
func (m *Manifest) References() iter.Seq[Reference] {
	return func(yield func(Reference) bool) {
		for i := range m.Disks {
			for ref := range m.Disks[i].references() {
				if !yield(ref) {
					return
				}
			}
		}
		for i := range m.Files {
			f := &m.Files[i]
			if !yield(Reference{Key: archive.FileKey(f.Object.Name), Object: f.Object, File: f}) {
				return
			}
		}
	}
}

func (d *Disk) references() iter.Seq[Reference] {
	return func(yield func(Reference) bool) {
		for i := range d.Maps {
			m := &d.Maps[i]
			key := archive.MapKey(m.Name)
			if !yield(Reference{Key: key, Object: m.Ref, Disk: d, Map: m, Place: d.Place(i)}) {
				return
			}
		}
		for _, b := range d.Records() {
			key := archive.BitmapKey(b.Object.Name)
			if !yield(Reference{Key: key, Object: b.Object, Disk: d, Bitmap: &b}) {
				return
			}
		}
		if d.ClusterMap == nil {
			return
		}
		for i, part := range d.ClusterMap.Parts {
			_, _, h := d.ClusterMap.Part(i, d.Size)
			key := archive.ClustersKey(part.Name)
			if !yield(Reference{Key: key, Object: part, Disk: d, Part: &ClusterPart{part, h}}) {
				return
			}
		}
	}
}

// MapPlace is where a manifest names a map, and so what map it must be.
type MapPlace struct {
	Disk   string
	Size   int64 // the disk's virtual size, bytes
	Newest bool  // the first of the disk's maps
	Full   bool  // the last
}

// Place is where the disk's i-th map stands.
func (d *Disk) Place(i int) MapPlace {
	return MapPlace{Disk: d.Name, Size: d.Size, Newest: i == 0, Full: i == len(d.Maps)-1}
}

// Check returns what makes the map unfit for the place, or nil.
func (p MapPlace) Check(m *archive.Map) error {
	switch {
	case m.Full() != p.Full:
		return fmt.Errorf("it is needed as a full map: %v; it is one: %v", p.Full, m.Full())
	case m.Disk() != p.Disk:
		return fmt.Errorf("it is of disk %.80q, not of disk %s", m.Disk(), p.Disk)
	case p.Newest && m.Size() != p.Size:
		return fmt.Errorf("it is of a disk of %d bytes, disk %s has %d", m.Size(), p.Disk, p.Size)
	}
	return nil
}

// Object is an object that a checkpoint needs.
type Object struct {
	Key string
	Ref archive.Ref
}

// Needs lists the objects that a checkpoint needs, each once: first the packs,
// then what the manifest itself names, so that they can be stored in this order.
// What is known is left out, and so are the packs of a map that is known; known
// may be nil. A map that is missing or damaged is an [archive.DamageError]: then
// what is needed can't be told.
func (r *Repository) Needs(
	ctx context.Context, m *Manifest, known func(key string) bool,
) ([]Object, error) {
	var packs, named []Object
	var maps []archive.MapRef
	seen := make(map[string]bool)
	first := func(key string) bool {
		if seen[key] || known != nil && known(key) {
			return false
		}
		seen[key] = true
		return true
	}
	for ref := range m.References() {
		if !first(ref.Key) {
			continue
		}
		named = append(named, Object{ref.Key, ref.Object})
		if ref.Map != nil {
			maps = append(maps, *ref.Map)
		}
	}
	each, err := r.packsOf(ctx, maps)
	if err != nil {
		return nil, err
	}
	for _, pack := range slices.Concat(each...) {
		if key := archive.PackKey(pack.Name); first(key) {
			packs = append(packs, Object{key, pack})
		}
	}
	return append(packs, named...), nil
}

// packsOf returns the packs that each of the maps names.
func (r *Repository) packsOf(ctx context.Context, maps []archive.MapRef) ([][]archive.Ref, error) {
	packs := make([][]archive.Ref, len(maps))
	err := r.EachMap(ctx, maps, func(_ context.Context, i int, m *archive.Map) error {
		packs[i] = m.Packs()
		return nil
	})
	return packs, err
}

// mapMemory bounds what maps that are open at once take, bytes, but for the lists of
// their packs.
const mapMemory = 96 << 20

// EachMap opens maps, several at once as memory allows, and hands each to do with its
// number. do runs on several goroutines at once; its context ends with the first error.
// A map that is missing or damaged is an [archive.DamageError].
func (r *Repository) EachMap(
	ctx context.Context, maps []archive.MapRef, do func(ctx context.Context, i int, m *archive.Map) error,
) error {
	lists := make([][]archive.MapRef, len(maps))
	for i := range maps {
		lists[i] = maps[i : i+1]
	}
	return r.EachMaps(ctx, lists, func(ctx context.Context, i int, maps []*archive.Map) error {
		return do(ctx, i, maps[0])
	})
}

// EachMaps is EachMap for lists of maps that are read together.
func (r *Repository) EachMaps(
	ctx context.Context, lists [][]archive.MapRef,
	do func(ctx context.Context, i int, maps []*archive.Map) error,
) error {
	memory := semaphore.NewWeighted(mapMemory)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(mapReaders)
	for i, list := range lists {
		need := openMapsMemory(list)
		if memory.Acquire(gctx, need) != nil {
			break
		}
		g.Go(func() error {
			defer memory.Release(need)
			maps := make([]*archive.Map, len(list))
			for j, ref := range list {
				var err error
				if maps[j], err = archive.OpenMap(gctx, r.Store, ref, 0); err != nil {
					return err
				}
			}
			return do(gctx, i, maps)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx) // nil, unless the caller ended the loop
}

// openMapsMemory is about what maps take that are open and are being read: those that are
// small themselves; of others the directories, and some megabytes that are read ahead.
func openMapsMemory(list []archive.MapRef) int64 {
	const small, ahead = 512 << 10, 18 << 20
	need, large := int64(0), int64(0)
	for _, ref := range list {
		if ref.Length <= small {
			need += 64<<10 + 4*max(ref.Length, 0)
		} else {
			need, large = need+2*max(ref.DirLength, 0), ahead
		}
	}
	return min(need+large, mapMemory)
}
