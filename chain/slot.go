// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"
	"fmt"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
)

// Slot is the key of a manifest with what stood there when it was looked at.
// A commit is a conditional write to one slot: it succeeds only while the very
// bytes stand there, or nothing does. To change what stands there, so that a
// commit that was prepared for it can't succeed any more, is to spend the slot.
type Slot struct {
	Domain, Checkpoint string
	Manifest           *Manifest // nil: the slot is free, absent or with a void

	void *Void
	data []byte // what stands there; nil: nothing
}

// Key is where the slot is.
func (s *Slot) Key() string { return ManifestKey(s.Domain, s.Checkpoint) }

// Digest is that of the bytes that stand there; nil: nothing does.
func (s *Slot) Digest() *archive.Digest {
	if s.data == nil {
		return nil
	}
	d := archive.Sum(s.data)
	return &d
}

// Slot looks at a manifest's key. What stands there and can't be read is the
// error: an archive.DamageError, a NewerError, or the store's.
func (r *Repository) Slot(ctx context.Context, domain, checkpoint string) (*Slot, error) {
	if err := checkSlotNames(domain, checkpoint); err != nil {
		return nil, err
	}
	if s, err := r.beneathSlot(ctx, domain, checkpoint); s != nil || err != nil {
		return s, err
	}
	data, err := readSealed(ctx, r.Store, ManifestKey(domain, checkpoint))
	return r.takeSlot(data, err, domain, checkpoint)
}

// listedSlot is Slot as a listing has just shown it, or as it is by now: good enough to
// know what there is, and not to commit to.
func (r *Repository) listedSlot(ctx context.Context, l listed) (*Slot, error) {
	if s, err := r.beneathSlot(ctx, l.Domain, l.Name); s != nil || err != nil {
		return s, err
	}
	data, err := objstore.ReadListed(ctx, r.Store, l.info, maxStored)
	if errors.Is(err, objstore.ErrTooLarge) {
		err = archive.Damaged(l.info.Key, err)
	}
	s, err := r.takeSlot(data, err, l.Domain, l.Name)
	if err == nil && s.Manifest != nil && s.Manifest.ByHost {
		s.Manifest.Stored = l.info.Stored
	}
	return s, err
}

// takeSlot takes what was read of a slot.
func (r *Repository) takeSlot(data []byte, err error, domain, checkpoint string) (*Slot, error) {
	switch {
	case errors.Is(err, objstore.ErrNotFound):
		return &Slot{Domain: domain, Checkpoint: checkpoint}, nil
	case err != nil:
		return nil, fmt.Errorf("manifest of checkpoint %s of domain %s: %w", checkpoint, domain, err)
	}
	return r.parseSlot(data, domain, checkpoint)
}

// parseSlot takes apart what stands under a manifest's key.
func (r *Repository) parseSlot(data []byte, domain, checkpoint string) (*Slot, error) {
	s := &Slot{Domain: domain, Checkpoint: checkpoint, data: data}
	var err error
	if s.void, err = r.parseVoid(data, s.Key()); err != nil || s.void != nil {
		return s, err
	}
	s.Manifest, err = r.parseManifest(data, domain, checkpoint)
	return s, err
}

// spend changes what stands in a slot, unless another has by now: a free one gets a
// new void, a manifest its next revision with the same content, which leaves a void
// when it is forgotten. Either differs from all that stood there before, so that no
// commit that was prepared for the slot ever succeeds.
func (r *Repository) spend(ctx context.Context, s *Slot) error {
	v := r.newVoid()
	var data []byte
	var err error
	if s.Manifest == nil {
		data, err = r.seal(s.Key(), v)
	} else {
		next := *s.Manifest
		next.Revision++
		next.OverVoid = v.UUID
		if err := r.keepOrigin(ctx, s, &next); err != nil {
			return err
		}
		data, err = r.sealManifest(&next)
	}
	if err != nil {
		return err
	}
	if s.data == nil {
		err = r.create(ctx, s.Key(), data, nil)
	} else {
		err = r.swap(ctx, s.Key(), s.data, data, nil)
	}
	if errors.As(err, new(*standsError)) {
		return nil // another has changed it
	}
	return err
}

// scar sees to it that the slot in which m was committed is never again as it was before
// that: it is spent, unless it was by others. m is then as it stands.
func (r *Repository) scar(ctx context.Context, m *Manifest) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), confirmTime)
	defer cancel()
	for {
		slot, err := r.Slot(ctx, m.Domain, m.Checkpoint)
		if err != nil {
			return err
		}
		if now := slot.Manifest; now != nil && now.UUID == m.UUID {
			m.Revision, m.OverVoid = now.Revision, now.OverVoid
		}
		if slot.scarred() {
			return nil
		}
		if err := r.spend(ctx, slot); err != nil {
			return err
		}
	}
}

// scarred reports whether the slot will never be absent again.
func (s *Slot) scarred() bool {
	return s.void != nil || s.Manifest != nil && s.Manifest.OverVoid != ""
}
