// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/imgbackup/imgbackup/objstore"
)

// confirmTime bounds the look for what became of a manifest, which is taken
// even when the context has been cancelled.
const confirmTime = 30 * time.Second

// TakenError says that another checkpoint has the name.
type TakenError struct {
	Domain, Checkpoint string
}

func (e *TakenError) Error() string {
	return fmt.Sprintf("the name %s is taken in domain %s: choose another one", e.Checkpoint, e.Domain)
}

// UnknownOutcomeError says that a checkpoint may or may not have been committed.
type UnknownOutcomeError struct {
	Domain, Checkpoint string
	Err                error
}

func (e *UnknownOutcomeError) Error() string {
	return fmt.Sprintf("checkpoint %s of domain %s may have been committed, or not; the next backup finds out: %v", e.Checkpoint, e.Domain, e.Err)
}

func (e *UnknownOutcomeError) Unwrap() error { return e.Err }

// Commit stores a manifest if none stands under its key: the moment from which
// on the checkpoint exists. It first fills in Format, Version, RepositoryID,
// Revision and OverVoid where they are unset.
//
// It returns nil when the manifest stands there, durably, and was read back;
// also when the store had said that it failed, or that it stood there already,
// and also when ctx was cancelled while the store was at it. It returns a
// *TakenError when another one stands there, and an *UnknownOutcomeError when
// it can't be known. After any other error the manifest is not there.
func (r *Repository) Commit(ctx context.Context, m *Manifest) error {
	if err := r.CheckWritable(); err != nil {
		return err
	}
	m.fill(r)
	data, err := r.sealManifest(m)
	if err != nil {
		return err
	}
	err = r.create(ctx, ManifestKey(m.Domain, m.Checkpoint), data, nil)
	var stands *standsError
	if errors.As(err, &stands) && stands.data != nil {
		slot, perr := r.parseSlot(stands.data, m.Domain, m.Checkpoint)
		if perr == nil && slot.void != nil {
			return r.commitTo(ctx, slot, m, nil)
		}
	}
	if err != nil {
		return r.explain(m, err, true)
	}
	return nil
}

// commitTo is Commit to a slot that was free, as it was then. late is as that of create.
func (r *Repository) commitTo(ctx context.Context, slot *Slot, m *Manifest, late *bool) error {
	m.OverVoid = ""
	if slot.void != nil {
		m.OverVoid = slot.void.UUID
	}
	m.fill(r)
	data, err := r.sealManifest(m)
	if err != nil {
		return err
	}
	if slot.void != nil {
		err = r.swap(ctx, slot.Key(), slot.data, data, late)
	} else {
		err = r.create(ctx, slot.Key(), data, late)
	}
	if err != nil {
		return r.explain(m, err, true)
	}
	return nil
}

// fill sets what is the same in all manifests of a repository, and makes the
// texts for people fit to be stored.
func (m *Manifest) fill(r *Repository) {
	if m.Format == "" {
		m.Format = ManifestFormat
	}
	if m.Version == 0 {
		m.Version = ManifestVersion
	}
	if m.RepositoryID == "" {
		m.RepositoryID = r.Config.ID
	}
	if m.Revision == 0 {
		m.Revision = 1
	}
	m.Created = m.Created.UTC().Round(0)
	m.Description = readable(m.Description, maxDescription)
	for i := range m.Disks {
		d := &m.Disks[i]
		d.Reason = readable(d.Reason, maxText)
		d.NoBitmapReason = readable(d.NoBitmapReason, maxText)
	}
}

// standsError: another object stands under the key.
type standsError struct {
	data   []byte // nil: none does any more, or one that is too large
	stored bool   // the store had said that ours was stored
	doubt  bool   // ours may have been stored in between
}

func (*standsError) Error() string { return "another object is there" }
func (*standsError) Unwrap() error { return objstore.ErrExists }

// unknownError: whether the object was stored can't be known.
type unknownError struct{ err error }

func (e *unknownError) Error() string { return "it may have been stored, or not: " + e.err.Error() }
func (e *unknownError) Unwrap() error { return e.err }

// create stores a small object if none stands under the key, reads it back, and
// finds out what became of it where the store does not say so plainly: to be told
// that it is stored, by something on the way to the store, is not enough. nil
// means that it stands there, durably. Other than *standsError and *unknownError,
// an error means that it does not. Nothing that stands there is ever replaced. late, unless
// nil, is set where a request was repeated of which nobody knows whether it may still arrive.
func (r *Repository) create(ctx context.Context, key string, data []byte, late *bool) error {
	put := r.putNew(ctx, key, data, late)
	// The caller may have been interrupted: all the more must the outcome be known.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), confirmTime)
	defer cancel()
	stands, err := objstore.ReadAll(ctx, r.Store, key, maxStored)
	if errors.Is(err, objstore.ErrNotFound) && objstore.InDoubt(put) {
		// A request that is on its way still may create it at any moment, when
		// what it names is gone. To ask once more decides: of the two the second
		// one finds the first one's object.
		if again := r.putNew(ctx, key, data, late); again == nil {
			put = nil
		} else {
			put = errors.Join(put, again)
		}
		stands, err = objstore.ReadAll(ctx, r.Store, key, maxStored)
	}
	switch {
	case errors.Is(err, objstore.ErrTooLarge):
		return &standsError{}
	case errors.Is(err, objstore.ErrNotFound) && put != nil &&
		!errors.Is(put, objstore.ErrExists) && !objstore.InDoubt(put):
		return put
	case err != nil && put == nil:
		return &unknownError{err: fmt.Errorf("the store says that it is stored, but: %w", err)}
	case err != nil:
		// It stood there and is gone, or the store does not answer.
		return &unknownError{err: errors.Join(put, err)}
	case !bytes.Equal(stands, data):
		return &standsError{data: stands}
	case put == nil || errors.Is(put, objstore.ErrExists):
		return nil // and so it is durable
	}
	// It is ours: an answer was lost, or what makes it durable failed. To create it
	// once more changes nothing, and to be told that it exists is to be told that
	// it is durable. To replace it might undo what another has made of it by now.
	if again := r.putNew(ctx, key, data, late); again != nil && !errors.Is(again, objstore.ErrExists) {
		return &unknownError{err: errors.Join(put, again)}
	}
	return nil
}

// swap puts data in the place of the very bytes old, reads it back, and finds out what
// became of it as create does. To repeat the request changes nothing: it succeeds
// only while old stands.
func (r *Repository) swap(ctx context.Context, key string, old, data []byte, late *bool) error {
	put := r.putOver(ctx, key, old, data, late)
	// The caller may have been interrupted: all the more must the outcome be known.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), confirmTime)
	defer cancel()
	for again := 0; ; again++ {
		stands, err := objstore.ReadAll(ctx, r.Store, key, maxStored)
		gone := errors.Is(err, objstore.ErrNotFound) || errors.Is(err, objstore.ErrTooLarge)
		refused := put != nil && !objstore.InDoubt(put)
		switch {
		case err != nil && !gone && errors.Is(put, objstore.ErrChanged):
			return put
		case err != nil && !gone:
			return &unknownError{err: errors.Join(put, err)}
		case gone || !bytes.Equal(stands, data) && !bytes.Equal(stands, old):
			return &standsError{data: stands, stored: put == nil, doubt: put != nil && !errors.Is(put, objstore.ErrChanged)}
		case bytes.Equal(stands, data):
			// An answer was lost, or what makes it durable failed: to put it over itself
			// is to be told that it is durable.
			if put != nil {
				put = r.putOver(ctx, key, data, data, nil)
			}
			if put != nil && !errors.Is(put, objstore.ErrChanged) {
				return &unknownError{err: put}
			}
			return nil
		case put == nil:
			return &unknownError{err: errors.New("the store says that it is stored, but what it took the place of stands there")}
		case refused && !errors.Is(put, objstore.ErrChanged):
			return put
		case again == maxAgain:
			return &unknownError{err: put}
		}
		// A request that is on its way still may do it at any moment: to ask once more
		// decides.
		put = r.putOver(ctx, key, old, data, late)
	}
}

// maxAgain bounds how often a request is repeated whose outcome is not known; each
// may have been tried for minutes.
const maxAgain = 3

func (r *Repository) putOver(ctx context.Context, key string, old, data []byte, late *bool) error {
	return r.putOnce(ctx, key, data, objstore.PutOptions{Mode: objstore.Replace, Old: old, Late: late})
}

func (r *Repository) putNew(ctx context.Context, key string, data []byte, late *bool) error {
	return r.putOnce(ctx, key, data, objstore.PutOptions{Mode: objstore.Create, Late: late})
}

func (r *Repository) putOnce(ctx context.Context, key string, data []byte, o objstore.PutOptions) error {
	err := r.Store.Put(ctx, key, bytes.NewReader(data), o)
	if o.Late != nil && objstore.InDoubt(err) {
		*o.Late = true
	}
	return err
}

// parseManifest proves a manifest and that it belongs under its key.
func (r *Repository) parseManifest(data []byte, domain, name string) (*Manifest, error) {
	key := ManifestKey(domain, name)
	return parseAs(r, data, key, ManifestFormat, func(m *Manifest, who Author) error {
		if who != nil {
			m.By, m.ByHost = who.AuthorName(), !who.Manages()
		}
		if err := checkSlotRole(m, who); err != nil {
			return fmt.Errorf("it does not count: %w", err)
		}
		switch {
		case m.RepositoryID != r.Config.ID:
			return fmt.Errorf("it belongs to repository %s", m.RepositoryID)
		case m.Domain != domain || m.Checkpoint != name:
			return fmt.Errorf("it is the manifest of checkpoint %s of domain %s", m.Checkpoint, m.Domain)
		}
		return nil
	})
}
