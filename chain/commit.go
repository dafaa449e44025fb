// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/imgbackup/imgbackup/archive"
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
	return fmt.Sprintf("domain %s already has a checkpoint %s, and it is another one", e.Domain, e.Checkpoint)
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
// on the checkpoint exists. It first fills in Format, Version, RepositoryID and
// Revision where they are unset.
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
	if err := m.Validate(); err != nil {
		return err
	}
	stored, err := m.mapTexts(escapeText)
	if err != nil {
		return err
	}
	data, err := Seal(stored)
	if err != nil {
		return fmt.Errorf("manifest of %s: %w", m.Checkpoint, err)
	}
	key := ManifestKey(m.Domain, m.Checkpoint)
	err = r.create(ctx, key, data)
	var stands *standsError
	var unknown *unknownError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &unknown):
		return &UnknownOutcomeError{Domain: m.Domain, Checkpoint: m.Checkpoint, Err: unknown.err}
	case !errors.As(err, &stands):
		return fmt.Errorf("commit checkpoint %s of domain %s: %w", m.Checkpoint, m.Domain, err)
	}
	other, err := r.parseManifest(stands.data, m.Domain, m.Checkpoint)
	switch {
	case err == nil && other.UUID == m.UUID && other.Revision > m.Revision:
		return nil // ours, and described anew since
	case err == nil && other.UUID != m.UUID:
		return &TakenError{Domain: m.Domain, Checkpoint: m.Checkpoint}
	case err == nil:
		err = errors.New("what stands there has our uuid and is not what we stored")
	}
	// A damaged object might be ours as well as somebody else's.
	return &UnknownOutcomeError{Domain: m.Domain, Checkpoint: m.Checkpoint, Err: err}
}

// DeleteCheckpoint removes a checkpoint without data from the repository. What
// it recorded of bitmaps stays, as objects that nothing refers to.
func (r *Repository) DeleteCheckpoint(ctx context.Context, m *Manifest) error {
	if m.Kind != KindCheckpoint {
		return fmt.Errorf("checkpoint %s of domain %s holds an archive", m.Checkpoint, m.Domain)
	}
	// Another may stand there by now.
	stands, err := r.Manifest(ctx, m.Domain, m.Checkpoint)
	switch {
	case errors.Is(err, ErrNoCheckpoint):
		return nil
	case err != nil:
		return err
	case stands.UUID != m.UUID:
		return &TakenError{Domain: m.Domain, Checkpoint: m.Checkpoint}
	}
	return r.Store.Delete(ctx, ManifestKey(m.Domain, m.Checkpoint))
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
type standsError struct{ data []byte }

func (*standsError) Error() string { return "another object stands there" }
func (*standsError) Unwrap() error { return objstore.ErrExists }

// unknownError: whether the object was stored can't be known.
type unknownError struct{ err error }

func (e *unknownError) Error() string { return "it may have been stored, or not: " + e.err.Error() }
func (e *unknownError) Unwrap() error { return e.err }

// create stores a small object if none stands under the key, reads it back, and
// finds out what became of it where the store does not say so plainly: to be told
// that it is stored, by something on the way to the store, is not enough. nil
// means that it stands there, durably. Other than *standsError and *unknownError,
// an error means that it does not. Nothing that stands there is ever replaced.
func (r *Repository) create(ctx context.Context, key string, data []byte) error {
	put := r.putNew(ctx, key, data)
	// The caller may have been interrupted: all the more must the outcome be known.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), confirmTime)
	defer cancel()
	stands, err := objstore.ReadAll(ctx, r.Store, key, maxSealed)
	if errors.Is(err, objstore.ErrNotFound) && objstore.InDoubt(put) {
		// A request that is on its way still may create it at any moment, when
		// what it names is gone. To ask once more decides: of the two the second
		// one finds the first one's object.
		if again := r.putNew(ctx, key, data); again == nil {
			put = nil
		} else {
			put = errors.Join(put, again)
		}
		stands, err = objstore.ReadAll(ctx, r.Store, key, maxSealed)
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
	if again := r.putNew(ctx, key, data); again != nil && !errors.Is(again, objstore.ErrExists) {
		return &unknownError{err: errors.Join(put, again)}
	}
	return nil
}

func (r *Repository) putNew(ctx context.Context, key string, data []byte) error {
	return r.Store.Put(ctx, key, bytes.NewReader(data), objstore.PutOptions{Mode: objstore.Create})
}

// parseManifest proves a manifest and that it belongs under its key.
func (r *Repository) parseManifest(data []byte, domain, name string) (*Manifest, error) {
	key := ManifestKey(domain, name)
	var stored Manifest
	if err := unsealAs(data, key, ManifestFormat, &stored); err != nil {
		return nil, err
	}
	m, err := stored.mapTexts(unescapeText)
	if err == nil {
		err = m.Validate()
	}
	switch {
	case err != nil:
	case m.RepositoryID != r.Config.ID:
		err = fmt.Errorf("it belongs to repository %s", m.RepositoryID)
	case m.Domain != domain || m.Checkpoint != name:
		err = fmt.Errorf("it is the manifest of checkpoint %s of domain %s", m.Checkpoint, m.Domain)
	}
	if err != nil {
		return nil, archive.Damaged(key, err)
	}
	return m, nil
}
