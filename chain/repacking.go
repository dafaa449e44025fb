// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"
)

// Repacking is a writer of next revisions of manifests, which name other objects with the
// same content. It holds a lease.
type Repacking struct {
	repo  *Repository
	lease *Lease
}

// BeginRepack takes a lease. Where a prune has its mark in the repository the error is a
// *MarkStandsError: what is stored from now on nobody marks and deletes before End.
func (r *Repository) BeginRepack(ctx context.Context) (*Repacking, error) {
	lease, err := r.TakeLease(ctx, "repack")
	if err != nil {
		return nil, err
	}
	w := &Repacking{repo: r, lease: lease}
	m, err := r.Mark(ctx)
	switch {
	case errors.Is(err, ErrNoMark):
		return w, nil
	case err == nil && m.Standing():
		err = &MarkStandsError{Mark: m}
	case err == nil:
		return w, nil
	}
	return nil, errors.Join(err, w.End(ctx))
}

// Revise replaces a manifest by its next revision as [Repository.Revise] does.
func (w *Repacking) Revise(ctx context.Context, m *Manifest) error {
	return w.repo.Revise(ctx, m)
}

// End gives the lease back, also when ctx has ended.
func (w *Repacking) End(ctx context.Context) error {
	ctx, cancel := Tidying(ctx)
	defer cancel()
	return w.repo.DeleteLease(ctx, w.lease.UUID)
}
