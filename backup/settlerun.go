// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/imgbackup/imgbackup/chain"
)

// RunOptions are what a person says about a run that is to be settled.
type RunOptions struct {
	ImagesGone bool // images that are not there any more will not come back
	Ended      bool // it has ended, though that cannot be seen from here
	// Cloner releases copies that it has left; nil: nobody does.
	Cloner Cloner
}

// AliveError says that a run is at work, or may be.
type AliveError struct {
	UUID string
	Why  string
}

func (e *AliveError) Error() string { return fmt.Sprintf("run %s is not settled: %s", e.UUID, e.Why) }

// SettleRun ends what a run has left behind, which a person asks for by its uuid: see
// [Settle]; and removes its lease. It refuses with an [*AliveError] what is at work, and
// what may be at work on this machine, unless a person says that it has ended; what ran on
// another machine the person answers for. By naming the run the person names its images,
// but for those whose bitmap a checkpoint records.
func SettleRun(ctx context.Context, repo *chain.Repository, run *chain.Run, o RunOptions) ([]Settled, error) {
	if err := repo.CheckWritable(); err != nil {
		return nil, err
	}
	if err := checkSettle(run, o); err != nil {
		return nil, err
	}
	var all []Settled
	for _, in := range run.Intents {
		images, err := namedBy(ctx, repo, in)
		if err != nil {
			return all, err
		}
		done, err := Settle(ctx, repo, in, SettleOptions{Images: images, Gone: o.ImagesGone, Cloner: o.Cloner})
		all = append(all, done...)
		if err != nil {
			return all, goneHint(err, o)
		}
	}
	return all, repo.RemoveRun(ctx, run)
}

// checkSettle returns what speaks against settling a run, or nil.
func checkSettle(run *chain.Run, o RunOptions) error {
	unreadable := slices.ContainsFunc(run.Damaged, func(key string) bool {
		return chain.ParseKey(key).Kind == chain.KeyIntent
	})
	switch {
	case run.Fate == chain.FateAlive:
		return &AliveError{UUID: run.UUID, Why: fmt.Sprintf("its process %d is at work", run.Process.PID)}
	case run.Here && run.Fate == chain.FateUnknown && len(run.Intents) == 0 && !o.Ended:
		return &AliveError{UUID: run.UUID, Why: "it may be at work on this machine, in a container that cannot be" +
			" seen into from here (--ended says that it is not)"}
	case unreadable && !o.ImagesGone:
		return fmt.Errorf("the intent of run %s cannot be read, so that nobody knows what it did to which images"+
			" (--images-gone removes it all the same)", run.UUID)
	}
	return nil
}

// namedBy returns the images that a person names by naming an intent: all of them; none if
// any of its bitmaps is one that a checkpoint of any domain records, or may record, which
// an intent that was forged or moved might be after.
func namedBy(ctx context.Context, repo *chain.Repository, in *chain.Intent) ([]string, error) {
	domains, err := repo.Domains(ctx)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, image := range in.Images {
		paths = append(paths, image.Path)
	}
	for _, k := range in.Clones {
		paths = append(paths, k.Image)
	}
	for _, domain := range domains {
		history, damaged, err := repo.Manifests(ctx, domain)
		if err != nil {
			return nil, err
		}
		records := func(m *chain.Manifest) bool { return recordsAny(m, in) }
		if len(damaged) > 0 || slices.ContainsFunc(history, records) {
			return nil, nil
		}
	}
	return paths, nil
}

// recordsAny reports whether a manifest records one of an intent's bitmaps.
func recordsAny(m *chain.Manifest, in *chain.Intent) bool {
	return slices.ContainsFunc(m.Disks, func(d chain.Disk) bool {
		return slices.ContainsFunc(in.Images, func(image chain.IntentImage) bool { return image.Add == d.Bitmap || image.Add == d.LibvirtBitmap })
	})
}

// goneHint says what to do about an image that is not there.
func goneHint(err error, o RunOptions) error {
	if !o.ImagesGone && errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w (settle it where the images are; if they are gone for good, say so with --images-gone)", err)
	}
	return err
}
