// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"errors"
	"fmt"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
)

// What a person should do.
const (
	todoDamage = "imgbackup repair --from another repository, or --image an image that still has the bytes;" +
		" then drill again. imgbackup check --read-data tells what else is damaged"
	todoLost = "drill an older or newer checkpoint: what this one has lost is in no repository that was asked (imgbackup show tells what)"
	todoGone = "choose another checkpoint: imgbackup list shows them"
)

// Damage says what damage that a step has met means, which may be that the checkpoint is
// another by now.
func (s *Subject) Damage(ctx context.Context, err error) (Result, error) {
	newer, rerr := s.Repo.Reread(ctx, s.Manifest, err)
	switch {
	case newer != nil:
		return Result{}, &repackedError{newer}
	case errors.As(rerr, new(*chain.GoneError)):
		return Skip(rerr.Error(), todoGone), nil
	case !archive.IsDamage(rerr):
		return Result{}, rerr
	}
	return Fail(err.Error(), todoDamage), nil
}

// repackedError says that a prune has given the checkpoint other objects meanwhile.
type repackedError struct{ newer *chain.Manifest }

func (e *repackedError) Error() string {
	return fmt.Sprintf("checkpoint %s was repacked meanwhile", e.newer.Checkpoint)
}
