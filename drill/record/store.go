// SPDX-License-Identifier: Apache-2.0

package record

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
)

// Seal encodes a record as it is stored, and names it.
func Seal(r *Record) ([]byte, error) {
	n, err := newName(r.Begun, r.Verdict, len(r.LeftOut) > 0, r.CheckpointUUID)
	if err != nil {
		return nil, err
	}
	r.UUID = n.UUID
	if err := r.Validate(); err != nil {
		return nil, err
	}
	return chain.Seal(r)
}

// Parse proves and decodes a record that stands under the name id in a domain. The error
// is an archive.DamageError or a chain.NewerError.
func Parse(data []byte, domain, id string) (*Record, error) {
	key := chain.DrillKey(domain, id)
	r := new(Record)
	if err := chain.Unseal(data, key, Format, r); err != nil {
		return nil, err
	}
	err := r.Validate()
	if err == nil && (r.UUID != id || r.Domain != domain) {
		err = fmt.Errorf("it is %.40q of domain %.200q", r.UUID, r.Domain)
	}
	if err != nil {
		return nil, archive.Damaged(key, err)
	}
	return r, nil
}

// Stored is a record with its bytes and its signature.
type Stored struct {
	*Record
	Data      []byte
	Signature []byte // none: it is not signed
	By        string // whose key has signed it, in an encrypted repository
}

// Drill is the record as package chain stores it.
func (s *Stored) Drill() *chain.DrillRecord {
	return &chain.DrillRecord{Domain: s.Domain, ID: s.UUID, CheckpointUUID: s.CheckpointUUID, Data: s.Data, Signature: s.Signature}
}

// Read reads a record of a repository.
func Read(ctx context.Context, repo *chain.Repository, domain, id string) (*Stored, error) {
	d, err := repo.Drill(ctx, domain, id)
	if err != nil {
		return nil, err
	}
	r, err := Parse(d.Data, domain, id)
	if err == nil && repo.ProvesDrills() && r.CheckpointUUID != d.CheckpointUUID {
		err = archive.Damaged(chain.DrillKey(domain, id), fmt.Errorf("it is of checkpoint %s, and was signed as that of %s", r.CheckpointUUID, d.CheckpointUUID))
	}
	if err != nil {
		return nil, err
	}
	return &Stored{Record: r, Data: d.Data, Signature: d.Signature, By: d.By}, nil
}

// Proven leaves out those of listed names that are not to be believed: where records are signed,
// of which nobody has signed one who may. (check tells of these.) Where they are not, all are left.
func Proven(ctx context.Context, repo *chain.Repository, all map[string][]Name) (map[string][]Name, error) {
	if !repo.ProvesDrills() {
		return all, nil
	}
	proven := make(map[string][]Name, len(all))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(provenAtOnce)
	for domain, names := range all {
		names = slices.Clone(names)
		proven[domain] = names
		for i := range names {
			g.Go(func() error {
				d, err := repo.Drilled(ctx, domain, names[i].UUID)
				switch {
				case errors.Is(err, objstore.ErrNotFound), chain.Unusable(err):
					names[i].UUID = ""
					return nil
				case err != nil:
					return err
				}
				if names[i].whole = d.CheckpointUUID; !names[i].Of(d.CheckpointUUID) {
					names[i].UUID = ""
				}
				return nil
			})
		}
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("read the records of drills: %w", err)
	}
	for domain, names := range proven {
		proven[domain] = slices.DeleteFunc(names, func(n Name) bool { return n.UUID == "" })
	}
	return proven, nil
}

// provenAtOnce is how many records are read at once.
const provenAtOnce = 64

// List lists the records of a domain, or of all domains if it is empty, by domain, oldest
// first, as one listing shows them. What has no proper name is left out: check tells.
func List(ctx context.Context, repo *chain.Repository, domain string) (map[string][]Name, error) {
	listed, err := repo.Drills(ctx, domain)
	if err != nil {
		return nil, err
	}
	all := make(map[string][]Name)
	for domain, ids := range listed {
		for _, id := range ids {
			if n, err := ParseName(id); err == nil {
				all[domain] = append(all[domain], n)
			}
		}
		slices.SortFunc(all[domain], func(a, b Name) int { return cmp.Or(a.Begun.Compare(b.Begun), cmp.Compare(a.UUID, b.UUID)) })
	}
	return all, nil
}

// Last is the newest of names, oldest first, that tells of the checkpoint with a UUID: see
// [Name.Tells].
func Last(names []Name, checkpoint string) (Name, bool) {
	for _, n := range slices.Backward(names) {
		if n.Of(checkpoint) && n.Tells() {
			return n, true
		}
	}
	return Name{}, false
}
