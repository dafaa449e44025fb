// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qcow2"
)

// settle ends what earlier runs on this host left behind: bitmaps of
// checkpoints that never committed are removed, and so are the intents.
func (s *session) settle(ctx context.Context) error {
	intents, damaged, err := s.repo.Intents(ctx, s.req.Domain)
	if err != nil {
		return err
	}
	for _, err := range damaged {
		s.hooks.note("an intent cannot be read and stays: %v", err)
	}
	for _, in := range intents {
		if in.Host != s.host {
			s.hooks.note("host %s left a backup of %s unfinished (checkpoint %s); only it can tidy up", in.Host.Name, in.Domain, in.Checkpoint)
			continue
		}
		if err := s.settleOne(ctx, in); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) settleOne(ctx context.Context, in *chain.Intent) error {
	guards, err := s.guardImages(ctx, in)
	defer func() {
		for _, g := range guards {
			_ = g.Close() // opened for reading only
		}
	}()
	var busy *qcow2.BusyError
	if errors.As(err, &busy) {
		return err
	}
	if err != nil {
		s.hooks.note("the unfinished backup of checkpoint %s stays to be settled: %v", in.Checkpoint, err)
		return nil
	}
	committed, err := s.committed(ctx, in)
	if err != nil {
		return err
	}
	for i, image := range in.Images {
		if committed {
			break
		}
		if _, err := removeIfThere(ctx, guards[i], image.Path, image.Add); err != nil {
			var inUse *qcow2.InUseError
			if errors.As(err, &inUse) && s.wants(image) {
				return err
			}
			s.hooks.note("the unfinished backup of checkpoint %s stays to be settled: %v", in.Checkpoint, err)
			return nil
		}
	}
	return s.repo.DeleteIntent(ctx, in.Domain, in.UUID)
}

// wants reports whether this run backs up the image, too.
func (s *session) wants(image chain.IntentImage) bool {
	for _, d := range s.disks {
		if resolved(d.req.Path) == image.Path {
			return true
		}
	}
	return false
}

// guardImages takes the flock of every image of an intent, which tells whether
// the run that wrote it has ended.
func (s *session) guardImages(ctx context.Context, in *chain.Intent) ([]*qcow2.ImageFlock, error) {
	wait := flockWait
	if !s.alive(in) {
		wait = orphanWait
	}
	var guards []*qcow2.ImageFlock
	for _, image := range in.Images {
		g, err := qcow2.FlockImage(ctx, image.Path, wait)
		if err != nil {
			return guards, &chain.DiskError{Disk: image.Disk, Err: err}
		}
		guards = append(guards, g)
	}
	return guards, nil
}

// orphanWait is how long the qemu-img of a run that was killed is waited for; it
// holds the flock until it has ended.
const orphanWait = 10 * time.Second

// alive reports whether the run that wrote an intent of this host may be at
// work still.
func (s *session) alive(in *chain.Intent) bool {
	return in.BootID == s.bootID && !errors.Is(unix.Kill(in.PID, 0), unix.ESRCH)
}

// committed reports whether an intent's checkpoint stands in the repository.
func (s *session) committed(ctx context.Context, in *chain.Intent) (bool, error) {
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
	return m.UUID == in.CheckpointUUID, nil
}
