// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"slices"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
)

// retire removes from an image what the intent of a run that is complete says is needed no more: of
// that only bitmaps of checkpoints of the domain that are older than the run's, and nothing where
// the image is without the run's own, be it that an older copy was put in its place.
func (s *settler) retire(ctx context.Context, guard *qemu.ImageFlock, in *chain.Intent, image chain.IntentImage) (done []Settled, err error) {
	held := false
	err = lockedTopLayer(ctx, image.Path, FlockWait, func(l *qcow2.Layer) error {
		held = l.Bitmap(image.Add) != nil
		return nil
	})
	if err != nil || !held {
		return nil, err
	}
	all, err := s.all(ctx)
	if err != nil {
		return nil, err
	}
	for _, name := range image.Retire {
		if !olderThan(all, name, in.CheckpointUUID) {
			continue
		}
		removed, _, err := removeBoth(ctx, guard, image.Path, name, besides(all, name))
		done = append(done, Settled{Disk: image.Disk, Path: image.Path, Bitmap: name, Removed: removed})
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// all are the domain's checkpoints, those that were forgotten among them.
func (s *settler) all(ctx context.Context) ([]*chain.Manifest, error) {
	left, err := s.repo.Forgotten(ctx, s.domain)
	if err != nil {
		return nil, err
	}
	return slices.Concat(s.history, goneOf(left.Manifests(), s.history)), nil
}

// olderThan reports whether a bitmap is one that a checkpoint added which is older than the one with
// that uuid.
func olderThan(all []*chain.Manifest, bitmap, uuid string) bool {
	i := slices.IndexFunc(all, func(m *chain.Manifest) bool { return m.UUID == uuid })
	return i >= 0 && slices.ContainsFunc(all, func(m *chain.Manifest) bool {
		return m.Sequence < all[i].Sequence && slices.ContainsFunc(m.Disks, func(d chain.Disk) bool {
			return d.Bitmap == bitmap && d.Adopted == nil && bitmap == chain.BitmapName(m.Checkpoint, m.UUID)
		})
	})
}
