// SPDX-License-Identifier: Apache-2.0

package forget

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/retention"
)

// noteDrilled notes which of a domain's archives, in the order of its manifests, a drill of
// all disks has passed for, with none that failed since, until there are as many as are asked for. What a listing
// shows is proven by the record itself: where that of a drill that passed cannot be read,
// nobody knows whether its checkpoint stays. Where records are signed it is proven by who has
// signed it, which takes no key that reads it; and one that nobody has signed who may, whatever it
// says, leaves everything as it is until a person has looked.
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
		if !counts(m) {
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

// drilled reports whether the last drill of a checkpoint that came to a verdict passed. One that
// left disks out came to one only if it failed.
func drilled(ctx context.Context, repo *chain.Repository, m *chain.Manifest, names []record.Name) (bool, error) {
	for _, n := range slices.Backward(names) {
		if !n.Of(m.UUID) || n.Verdict == record.VerdictIncomplete || !n.Tells() {
			continue
		}
		verdict, of, err := proven(ctx, repo, m.Domain, n)
		switch {
		case errors.Is(err, objstore.ErrNotFound):
			continue // removed since it was listed
		case n.Verdict != record.VerdictPassed && !repo.ProvesDrills() && chain.Unusable(err):
			return false, nil
		case chain.Unusable(err):
			return false, fmt.Errorf("%w (imgbackup repair --from mends it; or remove it, and drill checkpoint %s again)", err, m.Checkpoint)
		case err != nil:
			return false, err
		case of == m.UUID:
			return verdict == record.VerdictPassed, nil
		}
	}
	return false, nil
}

// proven is what a record says that stands under a name: its verdict, and the UUID of the
// checkpoint.
func proven(ctx context.Context, repo *chain.Repository, domain string, n record.Name) (record.Verdict, string, error) {
	if repo.ProvesDrills() {
		d, err := repo.Drilled(ctx, domain, n.UUID)
		if err != nil {
			return "", "", err
		}
		return n.Verdict, d.CheckpointUUID, nil // the name is signed, too
	}
	r, err := record.Read(ctx, repo, domain, n.UUID)
	if err != nil {
		return "", "", err
	}
	return r.Verdict, r.CheckpointUUID, nil
}
