// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"
	"fmt"
)

// RevisedError says that a checkpoint was described anew since it was read: what
// was decided by its older revision has to be decided again.
type RevisedError struct {
	Domain, Checkpoint string
	Manifest           *Manifest // the newest, as it was seen
}

func (e *RevisedError) Error() string {
	return fmt.Sprintf("checkpoint %s of domain %s was described anew meanwhile (revision %d)", e.Checkpoint, e.Domain, e.Manifest.Revision)
}

// GoneError says that a checkpoint was forgotten since it was read. It wraps
// ErrNoCheckpoint.
type GoneError struct{ Domain, Checkpoint string }

func (e *GoneError) Error() string {
	return fmt.Sprintf("checkpoint %s of domain %s was forgotten meanwhile", e.Checkpoint, e.Domain)
}
func (e *GoneError) Unwrap() error { return ErrNoCheckpoint }

// Revise replaces a manifest by its next revision. m is the manifest as it was read,
// with what is to be changed; its Revision is that which was read, and is one more
// when Revise returns nil.
//
// It is one conditional replace: where that checkpoint stands there no more as it was
// read the error is a *RevisedError, a *GoneError, or a *TakenError when another one
// has its name; where it can't be known it is an *UnknownOutcomeError.
//
// A revision that needs an object which the one before did not is a commit as any
// other, and takes a lease that announces it.
func (r *Repository) Revise(ctx context.Context, m *Manifest) error {
	if err := r.CheckWritable(); err != nil {
		return err
	}
	slot, err := r.standing(ctx, m)
	if err != nil {
		return err
	}
	return r.reviseSlot(ctx, slot, m, nil)
}

// standing returns the slot in which m stands as it was read.
func (r *Repository) standing(ctx context.Context, m *Manifest) (*Slot, error) {
	slot, err := r.Slot(ctx, m.Domain, m.Checkpoint)
	if err != nil {
		return nil, err
	}
	return slot, slot.check(m)
}

// check returns why m does not stand in the slot as it was read, or nil.
func (s *Slot) check(m *Manifest) error {
	switch {
	case s.Manifest == nil:
		return &GoneError{Domain: s.Domain, Checkpoint: s.Checkpoint}
	case s.Manifest.UUID != m.UUID:
		return &TakenError{Domain: s.Domain, Checkpoint: s.Checkpoint}
	case s.Manifest.Revision != m.Revision:
		return &RevisedError{Domain: s.Domain, Checkpoint: s.Checkpoint, Manifest: s.Manifest}
	}
	return nil
}

// reviseSlot replaces what stands in the slot by the next revision m of it. late is as that
// of create.
func (r *Repository) reviseSlot(ctx context.Context, slot *Slot, m *Manifest, late *bool) error {
	next := *m
	next.OverVoid = slot.Manifest.OverVoid
	next.Revision = m.Revision + 1
	if err := r.keepOrigin(ctx, slot, &next); err != nil {
		return err
	}
	next.fill(r)
	data, err := r.sealManifest(&next)
	if err != nil {
		return err
	}
	if err := r.swap(ctx, slot.Key(), slot.data, data, late); err != nil {
		return r.explain(&next, err, false)
	}
	m.Revision, m.OverVoid = next.Revision, next.OverVoid
	return nil
}

// sealManifest returns the bytes of a manifest that is complete.
func (r *Repository) sealManifest(m *Manifest) ([]byte, error) {
	if err := m.Validate(); err != nil {
		return nil, err
	}
	stored, err := m.mapTexts(escapeText)
	if err != nil {
		return nil, err
	}
	data, err := r.seal(ManifestKey(m.Domain, m.Checkpoint), stored)
	if err != nil {
		return nil, fmt.Errorf("manifest of %s: %w", m.Checkpoint, err)
	}
	return data, nil
}

// explain says what became of the manifest m, from an error of create or swap: of a
// new checkpoint, or of the next revision of one.
func (r *Repository) explain(m *Manifest, err error, created bool) error {
	var stands *standsError
	var unknown *unknownError
	switch {
	case errors.As(err, &unknown):
		return &UnknownOutcomeError{Domain: m.Domain, Checkpoint: m.Checkpoint, Err: unknown.err}
	case !errors.As(err, &stands):
		return fmt.Errorf("commit checkpoint %s of domain %s: %w", m.Checkpoint, m.Domain, err)
	}
	slot := &Slot{Domain: m.Domain, Checkpoint: m.Checkpoint}
	if stands.data != nil {
		slot, err = r.parseSlot(stands.data, m.Domain, m.Checkpoint)
	} else {
		err = nil
	}
	switch {
	case err != nil: // a damaged object might be ours as well as somebody else's
	case slot.Manifest == nil && !created && !stands.doubt:
		return &GoneError{Domain: m.Domain, Checkpoint: m.Checkpoint}
	case slot.Manifest == nil && (slot.void != nil || m.OverVoid != "") && created && !stands.stored && !stands.doubt:
		return &TakenError{Domain: m.Domain, Checkpoint: m.Checkpoint} // the slot was spent
	case slot.Manifest == nil:
		err = errors.New("it stood there and is gone, or never did")
	case slot.Manifest.UUID != m.UUID:
		return &TakenError{Domain: m.Domain, Checkpoint: m.Checkpoint}
	case slot.Manifest.Revision > m.Revision && (created || stands.stored):
		return nil // ours, and described anew since
	case !created && (!stands.doubt || slot.Manifest.Revision == m.Revision):
		return &RevisedError{Domain: m.Domain, Checkpoint: m.Checkpoint, Manifest: slot.Manifest}
	default:
		err = errors.New("what stands there has our uuid and is not what we stored")
	}
	return &UnknownOutcomeError{Domain: m.Domain, Checkpoint: m.Checkpoint, Err: err}
}

// empty puts a void in the place of the manifest m, if that is what stands in the slot. late
// is as that of create.
func (r *Repository) empty(ctx context.Context, slot *Slot, m *Manifest, late *bool) error {
	data, err := r.seal(slot.Key(), r.newVoid())
	if err != nil {
		return err
	}
	err = r.swap(ctx, slot.Key(), slot.data, data, late)
	var stands *standsError
	if !errors.As(err, &stands) {
		return err
	}
	if stands.data == nil {
		return nil
	}
	now, err := r.parseSlot(stands.data, m.Domain, m.Checkpoint)
	if err != nil {
		return err
	}
	if err := now.check(m); !errors.As(err, new(*GoneError)) {
		return err
	}
	return nil
}
