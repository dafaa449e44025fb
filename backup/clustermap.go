// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/archive"
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
	then, now *chain.ClusterMap
	compared  int64 // bytes
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
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(min(runtime.GOMAXPROCS(0), 4))
	for i := range m.rec.Parts {
		g.Go(func() error {
			start, end, h := m.rec.Part(i, l.Size)
			p, err := archive.EncodeClusters(h, c.runs(gctx, layer, h.Unit, start, end), c.tempDir, archive.KeysOf(c.states.repo.Store))
			if err == nil {
				m.parts[i], m.rec.Parts[i] = p, p.Ref
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
func (c *clusterMaps) Moved(ctx context.Context, layer int, then *chain.ClusterMap, size int64) (bitmapstore.Runs, int64, error) {
	now, err := c.of(ctx, layer)
	if err != nil {
		return nil, 0, err
	}
	both := min(size, c.image.Layers[layer].Size)
	if now == nil {
		return bitmapstore.Between(0, both), 0, nil // another image
	}
	for _, s := range c.settled {
		if s.then == then && same(s.now, now.rec) {
			return nil, s.compared, nil
		}
	}
	if now.rec.Unit != then.Unit {
		return bitmapstore.Between(0, both), 0, nil
	}
	return bitmapstore.Join(func(yield func(bitmapstore.Run, error) bool) {
		for i, part := range then.Parts {
			start, end, h := then.Part(i, size)
			if start >= both || then.Span == now.rec.Span && part == now.rec.Parts[i] {
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
	}), 0, nil
}

// Settle notes that all that moved holds what it held, for [trust.Clusters].
func (c *clusterMaps) Settle(layer int, then *chain.ClusterMap, compared int64) {
	if now := c.layers[layer]; now != nil {
		c.settled = append(c.settled, settled{then, now.rec, compared})
	}
}

func same(a, b *chain.ClusterMap) bool {
	return a.Unit == b.Unit && a.Span == b.Span && slices.Equal(a.Parts, b.Parts)
}

// storeClusterMaps stores where the clusters of each disk lie.
func (s *archiver) storeClusterMaps(ctx context.Context, plan *Plan, w *archive.Writer, m *chain.Manifest) error {
	for i, d := range s.disks {
		now, err := d.clusters.of(ctx, 0)
		if s.req.Salvage && unreadable(err) {
			continue // of a disk that fails; the next one is examined without it
		}
		if err == nil && now != nil {
			m.Disks[i].ClusterMap = now.rec
			err = now.store(ctx, w, plan.Disks[i].base.Disk)
		}
		if err != nil {
			return &chain.DiskError{Disk: d.req.Disk, Err: err}
		}
	}
	return nil
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
