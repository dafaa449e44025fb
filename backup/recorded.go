// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"fmt"
	"maps"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qcow2"
)

// recordBitmaps stores every bitmap of ours as it is in the image now, for
// later backups to compare with.
func (s *session) recordBitmaps(ctx context.Context, d *disk, p *DiskPlan, w *archive.Writer, rec *chain.Disk) error {
	known := d.states.Bitmaps()
	maps.Copy(known, d.gone.Bitmaps())
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(recorders)
	var all []*chain.BitmapRecord
	for i, layer := range d.image.Layers {
		for _, b := range layer.Bitmaps {
			if known[b.Name] == nil || b.InUse || b.Problem != nil {
				continue
			}
			r := &chain.BitmapRecord{}
			all = append(all, r)
			g.Go(func() error {
				found, err := s.recordBitmap(ctx, w, layer, i, b)
				if err != nil || found == nil {
					return err
				}
				*r = *found
				r.Adopted = d.states.AdoptedAs(b.Name)
				r.Sound = i == 0 && p.sound[b.Name]
				return nil
			})
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, r := range all {
		if r.Name != "" { // else it can't be read
			rec.Witnesses = append(rec.Witnesses, *r)
		}
	}
	return nil
}

// recorders is how many bitmaps of a disk are stored at once.
const recorders = 4

func (s *session) recordBitmap(ctx context.Context, w *archive.Writer, layer *qcow2.Layer, index int, b *qcow2.Bitmap) (*chain.BitmapRecord, error) {
	dirty, err := b.DirtyBytes()
	if err != nil {
		// Damage in a bitmap must not keep its disk from being saved.
		s.hooks.note("bitmap %s of %s cannot be read and is not recorded: %v", b.Name, layer.Path, err)
		return nil, nil
	}
	ref, content, err := w.PutBitmap(ctx, headerOf(b, layer), b.Runs())
	if err != nil {
		return nil, fmt.Errorf("recording bitmap %s: %w", b.Name, err)
	}
	return &chain.BitmapRecord{
		Name: b.Name, Layer: index, LayerPath: layer.Path, Granularity: b.Granularity,
		Size: layer.Size, DirtyBytes: dirty, Enabled: b.Enabled, Object: ref, Content: content,
	}, nil
}
