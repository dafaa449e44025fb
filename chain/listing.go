// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/imgbackup/imgbackup/objstore"
)

// ListingError says that the store's listings can't be believed: an object that
// stands there is not listed. What isn't listed may be there, then.
type ListingError struct {
	Object string // key of the object that is not listed
}

func (e *ListingError) Error() string {
	return fmt.Sprintf("the store's listings cannot be believed: %s is there, and is not listed;"+
		" what else they leave out cannot be known", e.Object)
}

// confirmListing is asked when a listing is empty, which alone is no proof that
// there is nothing: the configuration is there, so a listing has to show it.
func (r *Repository) confirmListing(ctx context.Context) error {
	for info, err := range r.Store.List(ctx, ConfigKey) {
		if err != nil {
			return fmt.Errorf("list %s: %w", ConfigKey, err)
		}
		if info.Key == ConfigKey {
			return nil
		}
	}
	_, err := r.Store.Stat(ctx, ConfigKey)
	switch {
	case errors.Is(err, objstore.ErrNotFound):
		return &toldError{
			text: "the repository is gone: its " + ConfigKey + " was there just now",
			is:   []error{ErrNotRepository, err},
		}
	case err != nil:
		return err
	}
	return &ListingError{Object: ConfigKey}
}

// ConfirmListing is to be asked before anything is decided by a listing that is empty: an
// error, which may be a [*ListingError], says that it proves nothing.
func (r *Repository) ConfirmListing(ctx context.Context) error { return r.confirmListing(ctx) }

// CheckListed asks by name for a checkpoint that a listing of its domain did not
// have. If one that is it stands there, and still is not listed, the error is a
// [*ListingError]. Where the listing was right, it is nil.
func (r *Repository) CheckListed(
	ctx context.Context, domain, name string, is func(*Manifest) bool,
) error {
	m, err := r.Manifest(ctx, domain, name)
	switch {
	case errors.Is(err, ErrNoCheckpoint):
		return nil
	case err != nil:
		return err
	case !is(m):
		return nil
	}
	// It may have been made since.
	names, err := r.Checkpoints(ctx, domain)
	if err != nil || slices.Contains(names, name) {
		return err
	}
	return &ListingError{Object: ManifestKey(domain, name)}
}

// CheckParents asks by name for the parents that a domain's manifests name and that
// were not listed, names being those that were. Most often a parent that is missing
// is gone; one that stands there is a [*ListingError].
func (r *Repository) CheckParents(
	ctx context.Context, domain string, names []string, parents []CheckpointRef,
) error {
	asked := make(map[CheckpointRef]bool)
	for _, p := range parents {
		if asked[p] || slices.Contains(names, p.Name) {
			continue
		}
		asked[p] = true
		err := r.CheckListed(ctx, domain, p.Name, func(m *Manifest) bool { return m.UUID == p.UUID })
		if err != nil && !unusable(err) {
			return err
		}
	}
	return nil
}
