// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"
	"fmt"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
)

// Reread says what an error of a reader means, who has read the manifest m and then what
// it names: readers hold no lease, and a prune may have put other objects in the place of
// those, or the checkpoint was forgotten. So where an object is missing the manifest is
// read again. A newer revision is returned, and may be gone on with; a checkpoint that is
// gone is a *GoneError, which is no damage; else the error is as it was.
func (r *Repository) Reread(ctx context.Context, m *Manifest, err error) (*Manifest, error) {
	if !errors.Is(err, objstore.ErrNotFound) || !archive.IsDamage(err) {
		return nil, err
	}
	now, rerr := r.Manifest(ctx, m.Domain, m.Checkpoint)
	switch {
	case errors.Is(rerr, ErrNoCheckpoint), rerr == nil && now.UUID != m.UUID:
		return nil, &GoneError{Domain: m.Domain, Checkpoint: m.Checkpoint}
	case rerr != nil:
		return nil, errors.Join(err, rerr)
	case now.Revision > m.Revision:
		return now, err
	}
	return nil, err
}

// PruneState differs before and after any prune that has deleted something: who misses an
// object, and finds it changed, begins anew. While a prune is at work it is never the same.
// What is wrong with the mark is for a prune to say.
func (r *Repository) PruneState(ctx context.Context) (string, error) {
	m, err := r.Mark(ctx)
	switch {
	case errors.Is(err, ErrNoMark), err != nil && unusable(err):
		return "", nil
	case err != nil:
		return "", err
	case m.Standing():
		return NewUUID(), nil
	}
	return fmt.Sprint(m.UUID, m.Revision), nil
}
