// SPDX-License-Identifier: Apache-2.0

package trust_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qcow2"
)

// sector is the unit in which the world's disk is written to, bytes.
const sector = 512

// maxSectors bounds the disk. So small a one has fewer runs and bytes than the
// judge samples: it compares all that a bitmap calls clean.
const maxSectors = 24

// kind is what a layer holds of a sector.
type kind byte

const (
	none kind = iota // it is the backing file's
	zeroes
	data
)

// world is a disk, its image and its repository, all of them fakes that do what
// QEMU and the engine do.
type world struct {
	t       *testing.T
	image   image
	history []*chain.Manifest
	content map[*chain.Disk][]byte               // of archived states
	deltas  map[*chain.Disk][]bitmapstore.Run    // of incremental ones
	bitmaps map[archive.Digest][]bitmapstore.Run // recorded
	damaged map[*chain.Disk]bool
	places  map[*chain.ClusterMap][]int // recorded
	last    int                         // place that was given out
	copies  []image
	shrunk  bool // since the last backup
	piece   int  // sectors that the repository compares at once, if it can't be read; 0: it can be
	honest  bool // every write was recorded, and nothing else was done to bitmaps
	found   map[trust.Reason]int
}

// image is a disk's image with its backing chain.
type image struct {
	content []byte // a byte stands for each sector
	layers  []layer
}

type layer struct {
	holds   []kind
	places  []int // of what holds data: where
	mtime   int64
	bitmaps []bitmap
}

type bitmap struct {
	name    string
	grain   int // sectors
	enabled bool
	inUse   bool
	dirty   []bool // by sector
}

func (i image) clone() image {
	c := image{content: bytes.Clone(i.content)}
	for _, l := range i.layers {
		k := layer{holds: slices.Clone(l.holds), places: slices.Clone(l.places), mtime: l.mtime}
		for _, b := range l.bitmaps {
			b.dirty = slices.Clone(b.dirty)
			k.bitmaps = append(k.bitmaps, b)
		}
		c.layers = append(c.layers, k)
	}
	return c
}

func newWorld(t *testing.T, sectors int, found map[trust.Reason]int) *world {
	return &world{
		t: t, honest: true, found: found,
		image:   image{content: make([]byte, sectors), layers: []layer{{holds: make([]kind, sectors), places: make([]int, sectors)}}},
		places:  make(map[*chain.ClusterMap][]int),
		content: make(map[*chain.Disk][]byte),
		deltas:  make(map[*chain.Disk][]bitmapstore.Run),
		bitmaps: make(map[archive.Digest][]bitmapstore.Run),
		damaged: make(map[*chain.Disk]bool),
	}
}

// runs are the runs of sectors that satisfy is.
func runs(sectors int, is func(i int) bool) bitmapstore.Runs {
	return bitmapstore.Join(func(yield func(bitmapstore.Run, error) bool) {
		for i := range sectors {
			if is(i) && !yield(bitmapstore.Run{Start: int64(i) * sector, End: int64(i+1) * sector}, nil) {
				return
			}
		}
	})
}

// put is a guest's write; without a mark it is one that bitmaps missed.
func (w *world) put(i int, value byte, as kind, mark bool) {
	top := &w.image.layers[0]
	if as != data {
		top.places[i] = 0
	} else if top.holds[i] != data { // else it is overwritten where it is
		w.last++
		top.places[i] = w.last
	}
	w.image.content[i], top.holds[i] = value, as
	for j := range top.bitmaps {
		if b := &top.bitmaps[j]; mark && b.enabled {
			b.mark(i)
		}
	}
}

func (b *bitmap) mark(i int) {
	for k := i / b.grain * b.grain; k < min(i/b.grain*b.grain+b.grain, len(b.dirty)); k++ {
		b.dirty[k] = true
	}
}

// resize does to bitmaps what QEMU does: the bits of what is cut off are gone, and
// what is added is clean.
func (w *world) resize(sectors int) {
	top := &w.image.layers[0]
	w.image.content = resized(w.image.content, sectors)
	top.holds, top.places = resized(top.holds, sectors), resized(top.places, sectors)
	for j := range top.bitmaps {
		b := &top.bitmaps[j]
		b.dirty = resized(b.dirty, sectors)
		for i, is := range b.dirty {
			if is {
				b.mark(i) // the disk may have ended within a granule
			}
		}
	}
	for i := range top.holds { // what the new end lies behind in the backing file does not show
		if top.holds[i] == none && w.image.content[i] == 0 && w.below(i) == data {
			top.holds[i] = zeroes
		}
	}
}

func resized[T any](s []T, n int) []T {
	grown := make([]T, n)
	copy(grown, s)
	return grown
}

// below is what the backing files hold of a sector.
func (w *world) below(i int) kind {
	for _, l := range w.image.layers[1:] {
		if i < len(l.holds) && l.holds[i] != none {
			return l.holds[i]
		}
	}
	return none
}

// holds is what the chain holds of a sector.
func (w *world) holds(i int) kind {
	if k := w.image.layers[0].holds[i]; k != none {
		return k
	}
	return w.below(i)
}

// look is the image as the judge sees it.
func (w *world) look(clusterBits uint) *trust.Image {
	seen := &trust.Image{Content: w}
	for i, l := range w.image.layers {
		k := trust.Layer{
			Record: w.record(i), Size: int64(len(l.holds)) * sector,
			Header: &qcow2.Header{Version: 3, ClusterBits: clusterBits},
		}
		for _, b := range l.bitmaps {
			k.Bitmaps = append(k.Bitmaps, trust.Bitmap{
				Name: b.name, Granularity: int64(b.grain) * sector, Enabled: b.enabled, InUse: b.inUse,
				Dirty: runs(len(b.dirty), func(j int) bool { return b.dirty[j] }),
			})
		}
		seen.Layers = append(seen.Layers, k)
	}
	return seen
}

// record is what a manifest says of a layer. Every layer is another file.
func (w *world) record(i int) chain.Layer {
	depth := len(w.image.layers) - i
	return chain.Layer{
		Path: fmt.Sprintf("/vm/%d.qcow2", depth), Format: "qcow2", Device: 1, Inode: uint64(depth),
		Mtime: w.image.layers[i].mtime,
	}
}

// The world is the judge's [trust.Content].

func (w *world) ReadAt(_ context.Context, p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > int64(len(w.image.content))*sector {
		return fmt.Errorf("a read of %d bytes at %d lies outside the disk", len(p), off)
	}
	for i := range p {
		p[i] = w.image.content[(off+int64(i))/sector]
	}
	return nil
}

func (w *world) Data(context.Context) bitmapstore.Runs {
	return runs(len(w.image.content), func(i int) bool { return w.holds(i) == data })
}

func (w *world) Empty(context.Context) bitmapstore.Runs {
	return runs(len(w.image.content), func(i int) bool { return w.holds(i) != data })
}

func (w *world) Unmapped(ctx context.Context) bitmapstore.Runs { return w.Empty(ctx) }

func (w *world) Allocated(_ context.Context, layer int) bitmapstore.Runs {
	l := w.image.layers[layer]
	return runs(len(l.holds), func(i int) bool { return l.holds[i] != none })
}

// Moved is for [trust.Clusters]: sectors are compared one by one.
func (w *world) Moved(_ context.Context, layer int, then *chain.ClusterMap, size int64) (bitmapstore.Runs, trust.Settled, error) {
	was, l := w.places[then], w.image.layers[layer]
	return runs(min(int(size/sector), len(l.holds)), func(i int) bool { return was[i] != l.places[i] }), trust.Settled{}, nil
}

func (w *world) Settle(int, *chain.ClusterMap, trust.Settled) {}

// And its repository is the judge's [trust.Archive].

func (w *world) State(_ context.Context, d *chain.Disk) (trust.State, error) {
	content, ok := w.content[d]
	if !ok || w.damaged[d] {
		return nil, archive.Damaged("packs/it", errors.New("damaged"))
	}
	return state{content, w.piece}, nil
}

func (w *world) Bitmap(_ context.Context, rec *chain.BitmapRecord) (bitmapstore.Runs, error) {
	dirty, ok := w.bitmaps[rec.Object.Name]
	if !ok {
		return nil, archive.Damaged("bitmaps/it", errors.New("not there"))
	}
	return bitmapstore.Of(dirty...), nil
}

func (w *world) Delta(_ context.Context, d *chain.Disk) (bitmapstore.Runs, error) {
	if changed, ok := w.deltas[d]; ok {
		return bitmapstore.Of(changed...), nil
	}
	return nil, nil
}

// state is a disk's content as it was archived.
type state struct {
	content []byte
	piece   int // see world
}

func (s state) at(i int) byte {
	if i < len(s.content) {
		return s.content[i]
	}
	return 0
}

func (s state) Data(_ context.Context, size int64) bitmapstore.Runs {
	return runs(int(size/sector), func(i int) bool { return s.at(i) != 0 })
}

func (s state) Prefetch(context.Context, []bitmapstore.Run) error { return nil }

func (s state) Compare(ctx context.Context, disk trust.Reader, run bitmapstore.Run, counts func(bitmapstore.Run) (bool, error)) (trust.Comparison, error) {
	found := trust.Comparison{Same: true, Zeros: true}
	grid := int64(max(1, s.piece)) * sector
	for at := run.Start; at < run.End; {
		piece := bitmapstore.Run{Start: at / grid * grid, End: at/grid*grid + grid}
		mine := bitmapstore.Run{Start: at, End: min(piece.End, run.End)}
		at = mine.End
		if s.piece == 0 {
			piece = mine
		}
		same, zeros := s.reads(ctx, disk, piece)
		if !same && piece != mine {
			if yes, err := counts(piece); err != nil {
				return found, err
			} else if !yes {
				found.Untold = append(found.Untold, mine)
				continue
			}
		}
		found.Same, found.Zeros = found.Same && same, found.Zeros && zeros
	}
	return found, nil
}

// reads reports whether a disk reads in a range as the state does, and as zeros.
func (s state) reads(ctx context.Context, disk trust.Reader, run bitmapstore.Run) (same, zeros bool) {
	now := make([]byte, run.Len())
	if disk.ReadAt(ctx, now, run.Start) != nil {
		return false, false // it reaches beyond the disk's end
	}
	zeros = true
	for i, b := range now {
		if b != s.at(int((run.Start+int64(i))/sector)) {
			return false, false
		}
		zeros = zeros && b == 0
	}
	return true, zeros
}

// judge returns a judge of the disk.
func (w *world) judge(clusterBits uint) *trust.Judge {
	return &trust.Judge{Image: w.look(clusterBits), States: chain.StatesOf(w.history, "vda"), Archive: w, Clusters: w, Seed: 1}
}

// backup does what the engine does: judge, archive what may have changed (or, without
// data, only the bitmaps), add a bitmap, retire old ones. What is archived must be
// what the disk holds.
func (w *world) backup(withData bool, grain int, clusterBits uint, keep int) {
	w.t.Helper()
	v, err := w.judge(clusterBits).Verdict(w.t.Context(), trust.Question{WithData: withData})
	if err != nil {
		w.t.Fatal(err)
	}
	w.found[v.Code]++
	w.checkVerdict(v)
	if w.honest && w.expectsTrust(withData) && !v.Trusted {
		w.t.Fatalf("a bitmap that tells all is not believed: %s", v.Reason)
	}
	n := len(w.history) + 1
	name := fmt.Sprintf("c%d", n)
	m := &chain.Manifest{Checkpoint: name, UUID: name, Sequence: int64(n), Created: time.Unix(int64(n)*60, 0)}
	m.Disks = []chain.Disk{{
		Name: "vda", Size: int64(len(w.image.content)) * sector, Bitmap: name + ".bitmap", Granularity: int64(grain) * sector,
		Source: chain.Source{Path: w.record(0).Path, Device: 1, Inode: w.record(0).Inode},
	}}
	d := &m.Disks[0]
	for i := range w.image.layers[1:] {
		d.Backing = append(d.Backing, w.record(i+1))
	}
	for i, l := range w.image.layers {
		for _, b := range l.bitmaps {
			if !b.inUse {
				d.Witnesses = append(d.Witnesses, w.keepBitmap(b, i))
			}
		}
	}
	if withData {
		w.archive(d, v)
		d.ClusterMap = &chain.ClusterMap{Span: int64(n)}
		w.places[d.ClusterMap] = slices.Clone(w.image.layers[0].places)
	}
	top := &w.image.layers[0]
	top.bitmaps = append(top.bitmaps, bitmap{name: d.Bitmap, grain: grain, enabled: true, dirty: make([]bool, len(top.holds))})
	if n := len(top.bitmaps); n > keep {
		top.bitmaps = slices.Clone(top.bitmaps[n-keep:])
	}
	w.history = append(w.history, m)
	w.shrunk = false
}

// keepBitmap records a bitmap.
func (w *world) keepBitmap(b bitmap, at int) chain.BitmapRecord {
	dirty, err := runs(len(b.dirty), func(i int) bool { return b.dirty[i] }).Collect()
	if err != nil {
		w.t.Fatal(err)
	}
	key := archive.Digest{byte(len(w.bitmaps) >> 8), byte(len(w.bitmaps)), 1}
	w.bitmaps[key] = dirty
	return chain.BitmapRecord{
		Name: b.name, Layer: at, Granularity: int64(b.grain) * sector, Size: int64(len(b.dirty)) * sector,
		Enabled: b.enabled, Object: archive.Ref{Name: key, Length: 1},
	}
}

// archive stores a disk: what changed since the verdict's base, or all of it.
func (w *world) archive(d *chain.Disk, v trust.Verdict) {
	d.Maps = make([]archive.MapRef, 1)
	stored := bytes.Clone(w.image.content)
	if v.Trusted {
		base := state{content: w.content[v.Base.Disk]}
		for i := range stored {
			stored[i] = base.at(i)
		}
		changed, err := v.Dirty.Collect()
		if err != nil {
			w.t.Fatal(err)
		}
		for _, r := range changed {
			for i := r.Start / sector; i < r.End/sector; i++ {
				stored[i] = w.image.content[i]
			}
		}
		d.IncrementalFrom = v.Base.Manifest.Ref()
		w.deltas[d] = changed
	}
	w.content[d] = stored
	if !bytes.Equal(stored, w.image.content) && w.tells() {
		w.t.Fatalf("since %s: archived %v, and the disk holds %v", v.Base.Manifest.Checkpoint, stored, w.image.content)
	}
}

// tells reports whether nothing may stay unseen: an archive that can't be read does not tell what
// differs beside what has changed.
func (w *world) tells() bool { return w.honest || w.piece == 0 }

// checkVerdict checks that a trusted verdict names all that changed since its base.
func (w *world) checkVerdict(v trust.Verdict) {
	w.t.Helper()
	if !v.Trusted || len(w.content[v.Base.Disk]) == 0 || !w.tells() {
		return
	}
	dirty := make(map[int64]bool)
	for r, err := range v.Dirty {
		if err != nil {
			w.t.Fatal(err)
		}
		for i := r.Start / sector; i < r.End/sector; i++ {
			dirty[i] = true
		}
	}
	base := state{content: w.content[v.Base.Disk]}
	for i, now := range w.image.content {
		if was := base.at(i); was != now && !dirty[int64(i)] {
			w.t.Fatalf("sector %d changed from %d to %d since %s, which %s misses (%s)", i, was, now, v.Base.Manifest.Checkpoint, v.Code, v.Reason)
		}
	}
}

// expectsTrust reports whether the newest state that counts has its bitmap in the
// image: then an honest world has it trusted.
func (w *world) expectsTrust(withData bool) bool {
	for _, m := range slices.Backward(w.history) {
		d := &m.Disks[0]
		if withData && !(chain.DiskState{Manifest: m, Disk: d}).HasData() {
			continue
		}
		for _, l := range w.image.layers {
			if slices.ContainsFunc(l.bitmaps, func(b bitmap) bool { return b.name == d.Bitmap }) {
				return !w.damaged[d]
			}
		}
	}
	return false
}
