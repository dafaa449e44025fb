// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qcow2"
)

// Settle ends what the run that wrote an intent left behind: the bitmaps that it added
// are removed from the images, unless its checkpoint stands; then the intent is. It is for
// a person who knows that the run has ended, on the machine that has the images: whose
// host's the intent is, is not asked.
//
// Only images are touched that are named in images, by path, or by a manifest of the
// intent's domain. Where one cannot be settled, or is neither's, the error is a
// [*chain.DiskError], and the intent stays.
func Settle(ctx context.Context, repo *chain.Repository, in *chain.Intent, images []string) error {
	if err := repo.CheckWritable(); err != nil {
		return err
	}
	s, err := newSettler(ctx, repo, in.Domain, images)
	if err != nil {
		return err
	}
	return s.settle(ctx, in)
}

// settle ends what earlier runs on this host left behind.
func (s *session) settle(ctx context.Context) error {
	intents, damaged, err := s.repo.Intents(ctx, s.req.Domain)
	if err != nil {
		return err
	}
	for _, err := range damaged {
		s.hooks.note("an intent cannot be read and stays: %v", err)
	}
	var by *settler
	for _, in := range intents {
		if in.Host != s.host {
			s.hooks.note("host %s left a backup of %s unfinished (checkpoint %s); only it can tidy up", in.Host.Name, in.Domain, in.Checkpoint)
			continue
		}
		if by == nil {
			if by, err = newSettler(ctx, s.repo, s.req.Domain, s.paths()); err != nil {
				return err
			}
		}
		err := by.settle(ctx, in)
		switch {
		case err == nil:
		case s.mustSettle(err):
			return err
		default:
			why := strings.ReplaceAll(err.Error(), "\n", "; ") // of several images
			s.hooks.note("the unfinished backup of checkpoint %s stays to be settled: %s", in.Checkpoint, why)
		}
	}
	return nil
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
		busy  *qcow2.BusyError
		inUse *qcow2.InUseError
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
	bootID string
	// images are those that an intent can make us touch. An intent proves nothing: whoever
	// can write to the repository can store one, or move one here from another domain.
	images map[string]bool
}

// newSettler also takes the images that the domain's manifests name. Manifests that
// cannot be read name none.
func newSettler(ctx context.Context, repo *chain.Repository, domain string, images []string) (*settler, error) {
	history, _, err := repo.Manifests(ctx, domain)
	if err != nil {
		return nil, err
	}
	_, bootID := chain.CurrentHost()
	s := &settler{repo: repo, bootID: bootID, images: make(map[string]bool)}
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

// settle removes the bitmaps of an intent whose checkpoint does not stand, and the
// intent. What is wrong with an image is a [*chain.DiskError], after which the intent
// stays; its other images are settled all the same.
func (s *settler) settle(ctx context.Context, in *chain.Intent) error {
	guards := make(map[string]*qcow2.ImageFlock)
	defer func() {
		for _, g := range guards {
			_ = g.Close() // opened for reading only
		}
	}()
	var left []error
	for _, image := range in.Images {
		// Its flock tells whether the run has ended.
		if err := s.guard(ctx, in, image, guards); err != nil {
			left = append(left, &chain.DiskError{Disk: image.Disk, Err: err})
		}
	}
	var busy *qcow2.BusyError
	if err := errors.Join(left...); errors.As(err, &busy) {
		return err
	}
	stands, err := s.stands(ctx, in)
	if err != nil {
		return err
	}
	if !stands {
		for _, image := range in.Images {
			g := guards[image.Path]
			if g == nil {
				continue
			}
			if _, err := RemoveBitmap(ctx, g, image.Path, image.Add); err != nil {
				left = append(left, &chain.DiskError{Disk: image.Disk, Err: err})
			}
		}
	}
	if len(left) > 0 {
		return errors.Join(left...)
	}
	return s.repo.DeleteIntent(ctx, in.Domain, in.UUID)
}

// guard takes the flock of one of an intent's images.
func (s *settler) guard(ctx context.Context, in *chain.Intent, image chain.IntentImage, guards map[string]*qcow2.ImageFlock) error {
	if !s.images[image.Path] {
		return fmt.Errorf("its intent names the image %s, which is neither one of this run's nor one that a checkpoint of domain %s was made of: it is not touched",
			image.Path, in.Domain)
	}
	if guards[image.Path] != nil {
		return nil
	}
	wait := FlockWait
	if !s.alive(in) {
		wait = orphanWait
	}
	g, err := qcow2.FlockImage(ctx, image.Path, wait)
	if err == nil {
		guards[image.Path] = g
	}
	return err
}

// orphanWait is how long the qemu-img of a run that was killed is waited for; it
// holds the flock until it has ended.
const orphanWait = 10 * time.Second

// alive reports whether the run that wrote an intent of this host may be at
// work still.
func (s *settler) alive(in *chain.Intent) bool {
	return in.BootID == s.bootID && !errors.Is(unix.Kill(in.PID, 0), unix.ESRCH)
}

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
