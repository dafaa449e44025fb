// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qemu"
)

// SettleOptions are what a person says about an intent.
type SettleOptions struct {
	Images []string // that may be touched, by path, beside those of the domain's manifests
	Cloner Cloner   // releases copies that a run has left; nil: nobody does
	Gone   bool     // images that are not there any more will not come back
}

// Settled is what became of one image of an intent.
type Settled struct {
	Disk    string `json:"disk"`
	Path    string `json:"path"`
	Bitmap  string `json:"bitmap"`
	Removed bool   `json:"removed"` // the bitmap was there, and is not any more
	Gone    bool   `json:"gone"`    // the image is not there
}

// Settle ends what the run that wrote an intent left behind: the bitmaps that it added
// are removed from the images, unless its checkpoint stands; then the intent is, and the
// lease of the run. It is for a person who knows that the run has ended, on the machine
// that has the images: whose host's the intent is, is not asked.
//
// Only images are touched that o names, or a manifest of the intent's domain. Where one
// cannot be settled, or is neither's, the error is a [*chain.DiskError], and the intent
// stays.
func Settle(ctx context.Context, repo *chain.Repository, in *chain.Intent, o SettleOptions) ([]Settled, error) {
	if err := repo.CheckWritable(); err != nil {
		return nil, err
	}
	s, err := newSettler(ctx, repo, in.Domain, o.Images)
	if err != nil {
		return nil, err
	}
	s.gone, s.ended, s.cloner = o.Gone, true, o.Cloner
	return s.settle(ctx, in)
}

// settle ends what earlier runs on this host left behind. Where there is nothing, what was
// read of the domain with the same listing counts.
func (s *session) settle(ctx context.Context) error {
	past, err := s.repo.Past(ctx, s.req.Domain)
	if err != nil {
		return err
	}
	if past.Intents == 0 {
		s.past = &past
		return nil
	}
	s.early.drop() // to settle takes the images for itself
	intents, damaged, err := s.repo.Intents(ctx, s.req.Domain)
	if err != nil {
		return err
	}
	for _, err := range damaged {
		s.hooks.note("an intent cannot be read and stays: %v", err)
	}
	var by *settler
	for _, in := range intents {
		if !s.isHere(in) {
			s.hooks.note("host %s left a backup of %s unfinished (checkpoint %s): it tidies up, or a person does (imgbackup leases)", in.Host.Name, in.Domain, in.Checkpoint)
			continue
		}
		if in.Foreign {
			s.hooks.note("an unfinished backup of %s (checkpoint %s) is signed by %s: another key's is not tidied up (imgbackup leases)", in.Domain, in.Checkpoint, in.By)
			continue
		}
		if by == nil {
			if by, err = newSettler(ctx, s.repo, s.req.Domain, s.paths()); err != nil {
				return err
			}
			by.cloner = s.req.Cloner
		}
		_, err := by.settle(ctx, in)
		var disk *chain.DiskError
		switch {
		case err == nil:
		case errors.Is(err, fs.ErrPermission) && !errors.As(err, &disk):
			// The images are settled. It does no harm but to be looked at each time.
			s.stays("the intents of earlier backups can't be removed", err)
		case s.mustSettle(err):
			return err
		default:
			why := strings.ReplaceAll(err.Error(), "\n", "; ") // of several images
			s.hooks.note("the unfinished backup of checkpoint %s stays to be settled: %s", in.Checkpoint, why)
		}
	}
	return nil
}

// stays notes why an intent or a lease could not be removed. That this user or
// these credentials may not remove anything is noted once.
func (s *session) stays(what string, err error) {
	switch {
	case !errors.Is(err, fs.ErrPermission):
		s.hooks.note("%s: %v", what, err)
	case !s.mayNotRemove:
		s.mayNotRemove = true
		s.hooks.note("leases and intents stay in the repository, since nothing may be removed from it; each backup looks at those of its domain: %v", err)
	}
}

// isHere reports whether this machine's images are those of an intent.
func (s *session) isHere(in *chain.Intent) bool {
	return in.Host == s.self.Host || s.self.SameMachine(in.Process)
}

// paths are those of the request's images.
func (s *session) paths() []string {
	var all []string
	for _, d := range s.disks {
		all = append(all, d.req.Path)
	}
	return all
}

// mustSettle reports whether a backup cannot go on after an intent was not settled: the
// repository failed, the run that wrote it is at work still, or an image is in use that
// this run needs, too.
func (s *session) mustSettle(err error) bool {
	var (
		disk  *chain.DiskError
		busy  *qemu.BusyError
		inUse *qemu.InUseError
	)
	if !errors.As(err, &disk) || errors.As(err, &busy) {
		return true
	}
	if !errors.As(err, &inUse) {
		return false
	}
	for _, d := range s.disks {
		if ImagePath(d.req.Path) == inUse.Path {
			return true
		}
	}
	return false
}

// settler settles intents of one domain.
type settler struct {
	repo   *chain.Repository
	self   chain.Process
	domain string
	// images are those that an intent can make us touch. An intent proves nothing: whoever
	// can write to the repository can store one, or move one here from another domain.
	images  map[string]bool
	history []*chain.Manifest // of the domain
	gone    bool              // what is not there will not come back
	ended   bool              // the run has ended: a person knows it
	cloner  Cloner            // nil: none
}

// newSettler also takes the images that the domain's manifests name. Manifests that
// cannot be read name none.
func newSettler(ctx context.Context, repo *chain.Repository, domain string, images []string) (*settler, error) {
	history, _, err := repo.Manifests(ctx, domain)
	if err != nil {
		return nil, err
	}
	self, err := repo.Self()
	if err != nil {
		return nil, err
	}
	s := &settler{repo: repo, self: self, domain: domain, images: make(map[string]bool), history: history}
	for _, path := range images {
		s.images[ImagePath(path)] = true
	}
	for _, m := range history {
		for i := range m.Disks {
			s.images[m.Disks[i].Source.Path] = true
		}
	}
	return s, nil
}

// settle breaks the lease of an intent's run, and removes the bitmaps of an intent whose
// checkpoint does not stand, or the old ones that it was complete but for, and the intent. What is wrong with an image is a [*chain.DiskError], after
// which the intent stays; its other images are settled all the same.
func (s *settler) settle(ctx context.Context, in *chain.Intent) ([]Settled, error) {
	guards := make(map[string]*qemu.ImageFlock)
	defer func() {
		for _, g := range guards {
			_ = g.Close() // opened for reading only
		}
	}()
	done, left := s.guardAll(ctx, in, guards)
	var busy *qemu.BusyError
	if err := errors.Join(left...); errors.As(err, &busy) {
		return nil, err
	}
	if len(left) == 0 {
		// All that the run had under its locks is free: it has ended. But an intent proves
		// nothing: another writer's lease, which may be at work, is not its. A request of
		// the run that is still on its way commits nothing from here on.
		if err := s.repo.BreakLeaseOf(ctx, in); err != nil {
			return done, err
		}
	}
	stands, err := s.stands(ctx, in)
	if err != nil {
		return nil, err
	}
	for _, k := range in.Clones {
		if guards[k.Image] == nil {
			continue
		}
		if err := s.releaseClone(ctx, in, k); err != nil {
			left = append(left, &chain.DiskError{Disk: k.Disk, Err: err})
		}
	}
	for i, image := range in.Images {
		g := guards[image.Path]
		if g == nil || stands != in.Complete {
			continue
		}
		err := checkFree(ctx, image.Path)
		if err == nil && in.Complete {
			var more []Settled
			more, err = s.retire(ctx, g, in, image)
			done = append(done, more...)
		} else if err == nil {
			done[i].Removed, err = takeOut(ctx, g, in, image)
		}
		if err != nil {
			left = append(left, &chain.DiskError{Disk: image.Disk, Err: err})
		}
	}
	if len(left) > 0 {
		return done, errors.Join(left...)
	}
	return done, s.repo.DeleteIntent(ctx, in.Domain, in.UUID)
}

// checkFree returns an error if a program has the image open for writing: a VM may have had it since
// the run ended. No qemu-img of the run's has, since that would hold the flock.
func checkFree(ctx context.Context, path string) error {
	hold, err := qemu.HoldImage(ctx, path, FlockWait)
	if errors.As(err, new(*qemu.NoLockError)) {
		return nil
	}
	if err != nil {
		return err
	}
	return hold.Close()
}

// guardAll takes the flocks of an intent's images, which show whether its run has ended,
// and returns what is wrong with those that it could not take.
func (s *settler) guardAll(ctx context.Context, in *chain.Intent, guards map[string]*qemu.ImageFlock) (done []Settled, left []error) {
	for _, image := range in.Images {
		one := Settled{Disk: image.Disk, Path: image.Path, Bitmap: image.Add}
		err := s.guard(ctx, in, image, guards)
		if s.gone && errors.Is(err, fs.ErrNotExist) {
			one.Gone, err = true, nil
		}
		if err != nil {
			left = append(left, &chain.DiskError{Disk: image.Disk, Err: err})
		}
		done = append(done, one)
	}
	for _, k := range in.Clones {
		if err := s.guard(ctx, in, chain.IntentImage{Disk: k.Disk, Path: k.Image}, guards); err != nil && (!s.gone || !errors.Is(err, fs.ErrNotExist)) {
			left = append(left, &chain.DiskError{Disk: k.Disk, Err: err})
		}
	}
	return done, left
}

// guard takes the flock of one of an intent's images.
func (s *settler) guard(ctx context.Context, in *chain.Intent, image chain.IntentImage, guards map[string]*qemu.ImageFlock) error {
	if !s.images[image.Path] {
		return fmt.Errorf("its intent names the image %s, which is neither one of this run's nor one that a checkpoint of domain %s was made of: it is not touched",
			image.Path, in.Domain)
	}
	if guards[image.Path] != nil {
		return nil
	}
	wait := orphanWait
	if s.self.Fate(in.Process) == chain.FateAlive {
		wait = FlockWait
	}
	g, err := qemu.FlockImage(ctx, image.Path, wait)
	var none *qemu.NoLockError
	if s.ended && errors.As(err, &none) {
		g, err = qemu.Unlocked(image.Path)
	}
	if err == nil {
		guards[image.Path] = g
	}
	return err
}

// orphanWait is how long the qemu-img of a run that was killed is waited for; it
// holds the flock until it has ended.
const orphanWait = 10 * time.Second

// stands reports whether the checkpoint whose bitmaps an intent names stands in the
// repository.
func (s *settler) stands(ctx context.Context, in *chain.Intent) (bool, error) {
	m, err := s.repo.Manifest(ctx, in.Domain, in.Checkpoint)
	var bad *archive.DamageError
	switch {
	case errors.Is(err, chain.ErrNoCheckpoint):
		return false, nil
	case errors.As(err, &bad):
		// It stands, broken; its bitmap does no harm.
		return true, nil
	case err != nil:
		return false, err
	}
	// A bitmap's name has half of the uuid.
	return chain.BitmapName(m.Checkpoint, m.UUID) == chain.BitmapName(in.Checkpoint, in.CheckpointUUID), nil
}
