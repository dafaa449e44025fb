// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"
)

// Repacking is a writer of next revisions of manifests, which name other objects with the
// same content. It holds a lease.
type Repacking struct {
	hold *Hold
}

// BeginRepack takes a lease. Where a prune has its mark in the repository the error is a
// *MarkStandsError: what is stored from now on nobody marks and deletes before End.
func (r *Repository) BeginRepack(ctx context.Context) (*Repacking, error) {
	return r.beginRewrite(ctx, "repack")
}

// BeginRepair is BeginRepack for a repair, whose revisions may say that something is lost.
func (r *Repository) BeginRepair(ctx context.Context) (*Repacking, error) {
	return r.beginRewrite(ctx, "repair")
}

func (r *Repository) beginRewrite(ctx context.Context, purpose string) (*Repacking, error) {
	hold, err := r.Hold(ctx, purpose)
	if err != nil {
		return nil, err
	}
	w := &Repacking{hold}
	if m := hold.marks.stands(); m != nil {
		return nil, errors.Join(&MarkStandsError{Mark: m}, w.End(ctx))
	}
	return w, nil
}

// Context ends when the lease is found to be broken: see [Hold.Context].
func (w *Repacking) Context() context.Context { return w.hold.Context() }

// Explain puts before an error that the lease was broken, if that is what led to it.
func (w *Repacking) Explain(err error) error { return w.hold.Explain(err) }

// Revise replaces a manifest by its next revision as [Hold.Revise] does.
func (w *Repacking) Revise(ctx context.Context, m *Manifest) error {
	return w.hold.Revise(ctx, m)
}

// End gives the lease back, also when ctx has ended.
func (w *Repacking) End(ctx context.Context) error {
	ctx, cancel := Tidying(ctx)
	defer cancel()
	return w.hold.Release(ctx)
}
