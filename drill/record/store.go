// SPDX-License-Identifier: Apache-2.0

package record

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
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
}

// Read reads a record of a repository.
func Read(ctx context.Context, repo *chain.Repository, domain, id string) (*Stored, error) {
	data, sig, err := repo.Drill(ctx, domain, id)
	if err != nil {
		return nil, err
	}
	r, err := Parse(data, domain, id)
	if err != nil {
		return nil, err
	}
	return &Stored{Record: r, Data: data, Signature: sig}, nil
}

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
