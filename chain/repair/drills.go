// SPDX-License-Identifier: Apache-2.0

package repair

import (
	"context"
	"errors"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/objstore"
)

// fetchDrill looks for a drill's record, of which something is damaged, in other
// repositories: it is the same in all of them.
func (l *planner) fetchDrill(ctx context.Context, a Action) error {
	k := chain.ParseKey(a.Object)
	a.Why = "no other repository has it: nothing depends on it, and what it proved is no longer proven; drill again, and remove this object"
	for _, from := range l.o.From {
		r, err := record.Read(ctx, from.Repo, k.Domain, k.Name)
		switch {
		case archive.IsDamage(err), errors.Is(err, objstore.ErrNotFound):
			continue
		case errors.As(err, new(*crypt.KeyError)):
			a.Why = from.Name + " has it, and to take it from there takes the data key (an admin's identity)"
			continue
		}
		if err != nil {
			return err
		}
		if k.Kind == chain.KeyDrillSignature && record.CheckSignature(r.Data, r.Signature) != nil {
			continue
		}
		a.Do, a.From, a.Why = Fetch, from.Name, ""
		l.drills = append(l.drills, r)
		break
	}
	l.Actions = append(l.Actions, a)
	return nil
}

// mendDrills stores records of drills in the place of damaged ones.
func (e *execution) mendDrills(ctx context.Context) error {
	for _, r := range e.drills {
		if err := e.repo.MendDrill(ctx, r.Drill()); err != nil {
			return err
		}
		e.result.Fetched++
		e.result.Bytes += int64(len(r.Data) + len(r.Signature))
	}
	return nil
}
