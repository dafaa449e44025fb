// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"

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
