// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"fmt"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/internal/seal"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/hidden"
)

// layer puts over a store what the repository's keys do: names in keys of objects are hidden,
// and what is stored is encrypted.
func (r *Repository) layer(store objstore.Store) {
	r.base = store
	if r.Access != nil && r.Access.Names != nil && !hidden.IsStore(store) {
		store = hidden.Store(store, r.Access.Names, r.keyIn)
	}
	r.Store = archive.Encrypted(store, r.keys())
}

// Wrap puts something between the store and what the repository's keys do, which sees keys and
// objects as they are stored.
func (r *Repository) Wrap(wrap func(objstore.Store) objstore.Store) { r.layer(wrap(r.base)) }

// MeetNames has a repository that hides names know those that another one has: what is damaged
// here may not tell its own.
func (r *Repository) MeetNames(ctx context.Context, other *Repository) error {
	if r.Access == nil || r.Access.Names == nil {
		return nil
	}
	for _, prefix := range []string{domainsPrefix, drillsPrefix} {
		for info, err := range other.Store.List(ctx, prefix) {
			if err != nil {
				return fmt.Errorf("list %s: %w", prefix, err)
			}
			r.Access.Names.Stored(info.Key)
		}
	}
	return nil
}

// keyIn is the key, with names, that an object says it belongs under; "": it does not tell. It
// is not proven: a name has its digest, whoever says it.
func (r *Repository) keyIn(stored string, data []byte) string {
	data, err := r.open(crypt.Metadata, stored, data)
	if err != nil {
		return ""
	}
	_, signature, err := seal.Open(data)
	if err != nil || signature == nil {
		return ""
	}
	return signature.Key
}
