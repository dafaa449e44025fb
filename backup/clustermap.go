// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/clustermap"
	"github.com/imgbackup/imgbackup/qcow2"
)

// clusterMaps are the fingerprints of where the clusters of a disk's image lie, layer by layer,
// as far as they were asked for: each is made by one walk through the layer's tables.
type clusterMaps struct {
	states  *archives
	tempDir string
	image   *qcow2.Image
	layers  map[int]*clusterMap
	former  map[int]*clusterMap // of the image when it was open before
	settled []settled
}

// clusterMap is the fingerprint of one layer.
type clusterMap struct {
	files []qcow2.FileID // of the layer, when it was opened
	rec   *chain.ClusterMap
	parts []*archive.Clusters

	stored bool
}

// settled is a fingerprint in which all that moved since another was found to hold what it held.
type settled struct {
	trust.Settled
	then, now *chain.ClusterMap
}

// look begins with an image that has been opened.
func (c *clusterMaps) look(image *qcow2.Image) {
	closeMaps(c.former)
	c.image, c.former, c.layers = image, c.layers, make(map[int]*clusterMap)
}

// keep goes on with what is known from when the image was open before, of layers whose files are
// as they were. unwritten says that the guest's data in the active layer is, though its file has
// got a bitmap since: others that record show so.
func (c *clusterMaps) keep(unwritten bool) {
	for i, m := range c.former {
		if i < len(c.image.Layers) && (i == 0 && unwritten || slices.Equal(m.files, openedFiles(c.image.Layers[i]))) {
			c.layers[i] = m
			delete(c.former, i)
		}
	}
}

func openedFiles(l *qcow2.Layer) []qcow2.FileID {
	var ids []qcow2.FileID
	for _, f := range l.Files() {
		ids = append(ids, f.Opened())
	}
	return ids
}

// close gives back what fingerprints hold.
func (c *clusterMaps) close() {
	closeMaps(c.former)
	closeMaps(c.layers)
	c.former, c.layers = nil, nil
}

func closeMaps(maps map[int]*clusterMap) {
	for _, m := range maps {
		m.close()
	}
}

func (m *clusterMap) close() {
	for _, p := range m.parts {
		if p != nil {
			p.Close()
		}
	}
}

// of returns the fingerprint of a layer; nil: it has none, being no qcow2 image or empty.
func (c *clusterMaps) of(ctx context.Context, layer int) (*clusterMap, error) {
	if m := c.layers[layer]; m != nil {
		return m, nil
	}
	l := c.image.Layers[layer]
	if l.Header == nil || l.Size == 0 {
		return nil, nil
	}
	m := &clusterMap{files: openedFiles(l), rec: chain.NewClusterMap(l.Size, l.Header.ClusterSize())}
	m.parts = make([]*archive.Clusters, len(m.rec.Parts))
	keys := archive.KeysOf(c.states.repo.Store)
	if keys != nil {
		m.rec.Contents = make([]archive.Digest, len(m.rec.Parts))
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(min(runtime.GOMAXPROCS(0), 4))
	for i := range m.rec.Parts {
		g.Go(func() error {
			start, end, h := m.rec.Part(i, l.Size)
			p, err := archive.EncodeClusters(h, c.runs(gctx, layer, h.Unit, start, end), c.tempDir, keys)
			if err == nil {
				m.parts[i], m.rec.Parts[i] = p, p.Ref
			}
			if err == nil && keys != nil {
				m.rec.Contents[i] = p.Content
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		m.close()
		return nil, err
	}
	c.layers[layer] = m
	return m, nil
}

func (c *clusterMaps) runs(ctx context.Context, layer int, unit, start, end int64) clusterRuns {
	return clusterRuns(clustermap.Units(c.image.Places(ctx, layer, start, end), unit, start, end))
}

type clusterRuns = func(yield func(clustermap.Run, error) bool)

// Moved is where a layer's data does not lie now as it did in a disk of size bytes, for
// [trust.Clusters].
func (c *clusterMaps) Moved(ctx context.Context, layer int, then *chain.ClusterMap, size int64) (bitmapstore.Runs, trust.Settled, error) {
	now, err := c.of(ctx, layer)
	if err != nil {
		return nil, trust.Settled{}, err
	}
	both := min(size, c.image.Layers[layer].Size)
	if now == nil {
		return bitmapstore.Between(0, both), trust.Settled{}, nil // another image
	}
	for _, s := range c.settled {
		if s.then == then && same(s.now, now.rec) {
			return nil, s.Settled, nil
		}
	}
	if now.rec.Unit != then.Unit {
		return bitmapstore.Between(0, both), trust.Settled{}, nil
	}
	return bitmapstore.Join(func(yield func(bitmapstore.Run, error) bool) {
		for i, part := range then.Parts {
			start, end, h := then.Part(i, size)
			if start >= both || then.Span == now.rec.Span && samePart(then, now.rec, i) {
				continue
			}
			was := archive.ReadClusters(ctx, c.states.repo.Store, part, h, c.tempDir)
			end = min(end, both)
			for run, err := range clustermap.Moved(was, c.runs(ctx, layer, h.Unit, start, end), h.Unit, start, end) {
				if !yield(run, err) || err != nil {
					return
				}
			}
		}
	}), trust.Settled{}, nil
}

// Settle notes that all that moved holds what it held, for [trust.Clusters].
func (c *clusterMaps) Settle(layer int, then *chain.ClusterMap, found trust.Settled) {
	if now := c.layers[layer]; now != nil {
		c.settled = append(c.settled, settled{found, then, now.rec})
	}
}

// samePart reports whether a part holds the same in both.
func samePart(a, b *chain.ClusterMap, i int) bool {
	return a.Parts[i] == b.Parts[i] || i < len(a.Contents) && i < len(b.Contents) && a.Contents[i] == b.Contents[i]
}

func same(a, b *chain.ClusterMap) bool {
	if a.Unit != b.Unit || a.Span != b.Span || len(a.Parts) != len(b.Parts) {
		return false
	}
	for i := range a.Parts {
		if !samePart(a, b, i) {
			return false
		}
	}
	return true
}

// storeClusterMaps stores where the clusters of each disk lie.
func (s *archiver) storeClusterMaps(ctx context.Context, plan *Plan, w *archive.Writer, m *chain.Manifest) error {
	if s.req.Import != nil {
		return nil // it is not the image that comes back
	}
	for i, d := range s.disks {
		now, err := d.clusters.of(ctx, 0)
		if s.req.Salvage && unreadable(err) {
			continue // of a disk that fails; the next one is examined without it
		}
		if err == nil && now != nil {
			err = now.store(ctx, w, plan.Disks[i].base.Disk)
			m.Disks[i].ClusterMap = now.record()
		}
		if err != nil {
			return &chain.DiskError{Disk: d.req.Disk, Err: err}
		}
	}
	return nil
}

// record is what the manifest says of what was stored.
func (m *clusterMap) record() *chain.ClusterMap {
	rec := *m.rec
	rec.Parts = make([]archive.Ref, len(m.parts))
	for i, p := range m.parts {
		rec.Parts[i] = p.Ref
	}
	return &rec
}

// store stores the parts, unless that was done. Those that the state it builds on has, too, are
// there.
func (m *clusterMap) store(ctx context.Context, w *archive.Writer, base *chain.Disk) error {
	if m.stored {
		return nil
	}
	err := w.PutAllClusters(ctx, m.parts, func(ref archive.Ref) bool {
		return base != nil && base.ClusterMap != nil && slices.Contains(base.ClusterMap.Parts, ref)
	})
	m.stored = err == nil
	return err
}
