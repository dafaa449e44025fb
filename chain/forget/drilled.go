// SPDX-License-Identifier: Apache-2.0

package forget

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/retention"
)

// noteDrilled notes which of a domain's archives, in the order of its manifests, a drill of
// all disks has passed for last, until there are as many as are asked for. What a listing
// shows is proven by the record itself: where that of a drill that passed cannot be read,
// nobody knows whether its checkpoint stays.
func noteDrilled(ctx context.Context, repo *chain.Repository, domain string, ms []*chain.Manifest, archives []retention.Checkpoint, wanted int) error {
	all, err := record.List(ctx, repo, domain)
	if err != nil {
		return err
	}
	names := all[domain]
	if len(names) == 0 { // else all of them would be forgotten
		if err := repo.ConfirmListing(ctx); err != nil {
			return fmt.Errorf("which checkpoints were drilled cannot be told: %w", err)
		}
	}
	at := len(archives)
	for _, m := range slices.Backward(ms) {
		if m.Kind != chain.KindArchive {
			continue
		}
		at--
		if wanted == 0 {
			return nil
		}
		passed, err := drilled(ctx, repo, m, names)
		if err != nil {
			return fmt.Errorf("which checkpoints were drilled cannot be told: %w", err)
		}
		if archives[at].Drilled = passed; passed && wanted > 0 {
			wanted--
		}
	}
	return nil
}

// drilled reports whether the last drill of a checkpoint that came to a verdict passed.
func drilled(ctx context.Context, repo *chain.Repository, m *chain.Manifest, names []record.Name) (bool, error) {
	for _, n := range slices.Backward(names) {
		if !n.Of(m.UUID) || n.Verdict == record.VerdictIncomplete {
			continue
		}
		r, err := record.Read(ctx, repo, m.Domain, n.UUID)
		switch {
		case errors.Is(err, objstore.ErrNotFound):
			continue // removed since it was listed
		case n.Verdict != record.VerdictPassed && (archive.IsDamage(err) || errors.As(err, new(*chain.NewerError))):
			return false, nil
		case archive.IsDamage(err):
			return false, fmt.Errorf("%w (imgbackup repair --from mends it; or remove it, and drill checkpoint %s again)", err, m.Checkpoint)
		case err != nil:
			return false, err
		case r.CheckpointUUID == m.UUID && len(r.LeftOut) == 0:
			return r.Verdict == record.VerdictPassed, nil
		}
	}
	return false, nil
}
