// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qcow2"
)

// newIntent describes the bitmaps that are about to be added, so that the next
// run can take them out again should this one not come to an end.
func (s *session) newIntent(plan *Plan) (*chain.Intent, error) {
	in := &chain.Intent{
		Domain: s.req.Domain, Checkpoint: s.point.name, CheckpointUUID: s.point.uuid,
		Process: s.self, Created: time.Now().UTC().Truncate(time.Second),
	}
	for i, p := range plan.Disks {
		if !p.AddsBitmap {
			continue
		}
		d := s.disks[i]
		layer := d.image.Layers[0]
		id, err := layer.Stat()
		if err != nil {
			return nil, err
		}
		if d.before, err = layer.BitmapStates(); err != nil {
			return nil, &chain.DiskError{Disk: p.Disk, Err: err}
		}
		d.active, d.asked = layer.Path, false
		d.granularity = layer.BitmapGranularity()
		// Whoever takes them out again needs ours to know the other one.
		for _, name := range slices.Backward(s.added()) {
			in.Images = append(in.Images, chain.IntentImage{
				Disk: p.Disk, Path: layer.Path, Device: id.Dev, Inode: id.Inode,
				Before: names(d.before), Add: name,
			})
		}
	}
	return in, nil
}

func names(states []qcow2.BitmapState) []string {
	var all []string
	for _, b := range states {
		all = append(all, b.Name)
	}
	return all
}

// recorded reports whether a bitmap of which nothing has changed shows that nothing was written.
func recorded(b qcow2.BitmapState) bool { return b.Enabled && b.Readable && !b.InUse }

// verifyAdded looks natively, under the locks, whether the new bitmaps are
// there and empty and all others as they were. qemu-img's exit status proves
// neither. What differs may be a VM that ran in between.
func (s *session) verifyAdded(plan *Plan) error {
	for i, p := range plan.Disks {
		if !p.AddsBitmap {
			continue
		}
		d := s.disks[i]
		layer := d.image.Layers[0]
		if err := layer.VerifyBitmapAdded(d.before, d.granularity, s.added()...); err != nil {
			return &chain.DiskError{Disk: p.Disk, Err: imageChanged(layer.Path, "%v", err)}
		}
		same, err := d.guard.Holds(layer)
		if err != nil {
			return &chain.DiskError{Disk: p.Disk, Err: err}
		}
		if !same {
			return &chain.DiskError{Disk: p.Disk, Err: imageChanged(layer.Path, "another file is there")}
		}
	}
	return nil
}

// undo takes the bitmaps out again that a backup added that failed because of cause, and then
// the intent. What cannot be undone now stays in the intent for the next run.
func (s *session) undo(ctx context.Context, intent *chain.Intent, cause error) error {
	if err := s.unlock(); err != nil {
		return err
	}
	if len(intent.Images) == 0 && len(s.commanded) == 0 {
		return nil
	}
	for _, image := range intent.Images {
		d := s.diskAt(image.Path)
		if d == nil || !d.asked {
			continue // nothing was put there
		}
		if _, err := takeOut(ctx, d.guard, intent, image); err != nil {
			return &staysError{Bitmap: image.Add, Path: image.Path, Domain: intent.Domain, Err: err, cause: cause}
		}
	}
	if len(intent.Clones) > 0 {
		return nil // which the next run releases, as was noted
	}
	tidying, cancel := chain.Tidying(ctx)
	defer cancel()
	if err := s.repo.DeleteIntent(tidying, intent.Domain, intent.UUID); err != nil {
		return fmt.Errorf("the images are as they were, but the backup's intent could not be removed (the next backup of %s does it): %w", intent.Domain, err)
	}
	return nil
}

// diskAt returns the one of our disks whose image it is.
func (s *session) diskAt(image string) *disk {
	for _, d := range s.disks {
		if d.active == image {
			return d
		}
	}
	return nil
}

// keepBitmaps is how many checkpoints' bitmaps stay in an image: the newest,
// which the next incremental rests on, and one more as its witness.
const keepBitmaps = 2

// retire removes the bitmaps of ours that no later backup needs. What fails
// here costs nothing but space, so it is noted and no more.
func (s *session) retire(ctx context.Context, plan *Plan, manifest *chain.Manifest) {
	if s.released {
		s.retireLater(plan, manifest)
		return
	}
	for i, p := range plan.Disks {
		if !p.AddsBitmap {
			continue
		}
		for _, name := range s.retirable(p, manifest, names(s.disks[i].before)) {
			s.hooks.step(StepRetire)
			if err := s.removeOurs(ctx, s.disks[i], name); err != nil {
				s.hooks.note("disk %s: the old bitmap %s stays in the image for now: %v", p.Disk, name, err)
			}
		}
	}
}

// retirable lists, of the bitmaps that were in an image before, those of ours
// that are no longer needed. Bitmaps that no manifest names are not ours.
func (s *session) retirable(p *DiskPlan, manifest *chain.Manifest, names []string) []string {
	// A clone of another disk's image brings that disk's bitmaps with it.
	known, forgotten := s.oursAnywhere(), s.forgottenBitmaps()
	var mine, gone []string
	worthless := p.Detection != ByBitmap && p.verdict.DistrustAll
	for _, name := range names {
		m := known[name]
		if m == nil && forgotten[name] != nil {
			gone = append(gone, name)
		}
		if m == nil || m.UUID == manifest.UUID {
			continue
		}
		// A checkpoint without data is kept for as long as its definition: until
		// its bitmap, too, may be the one that lies.
		if m.Kind != chain.KindCheckpoint || worthless {
			mine = append(mine, name)
		}
	}
	newestFirst(mine, known)
	newestFirst(gone, forgotten)
	mine = append(mine, gone...) // which is a witness only where there is no other
	keep := keepBitmaps - 1
	if worthless {
		keep = 0
	}
	if len(mine) <= keep {
		return nil
	}
	return mine[keep:]
}

func newestFirst(bitmaps []string, of map[string]*chain.Manifest) {
	slices.SortFunc(bitmaps, func(a, b string) int { return int(of[b].Sequence - of[a].Sequence) })
}

func headerOf(b *qcow2.Bitmap, l *qcow2.Layer) bitmapstore.Header {
	return bitmapstore.Header{Name: b.Name, Granularity: b.Granularity, Size: l.Size}
}
