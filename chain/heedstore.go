// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"fmt"
	"iter"

	"github.com/imgbackup/imgbackup/internal/protocol"
	"github.com/imgbackup/imgbackup/objstore"
)

// Store is the repository's store as a writer has to see it: what is marked to be
// deleted counts as absent, and is struck from the mark, or waited for, when it is
// stored under the same name.
func (h *Hold) Store() objstore.Store { return &heedingStore{h.repo.Store, h} }

type heedingStore struct {
	objstore.Store
	hold *Hold
}

// Unwrap returns the store that is written to.
func (s *heedingStore) Unwrap() objstore.Store { return s.Store }

func (s *heedingStore) marked(ctx context.Context, key string) bool {
	return s.hold.Marked(key) && protocol.Keeps(ctx, protocol.Heed)
}

// Put implements objstore.Store.
func (s *heedingStore) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	if err := s.hold.Rely(ctx, key); err != nil {
		return err
	}
	return s.Store.Put(ctx, key, body, o)
}

// Stat implements objstore.Store.
func (s *heedingStore) Stat(ctx context.Context, key string) (objstore.Info, error) {
	if err := s.hold.Begun(ctx); err != nil {
		return objstore.Info{}, err
	}
	if s.marked(ctx, key) {
		return objstore.Info{}, objstore.MarkNotFound(fmt.Errorf("%s: a prune is about to delete it", key))
	}
	return s.Store.Stat(ctx, key)
}

// List implements objstore.Store.
func (s *heedingStore) List(ctx context.Context, prefix string) iter.Seq2[objstore.Info, error] {
	return func(yield func(objstore.Info, error) bool) {
		if err := s.hold.Begun(ctx); err != nil {
			yield(objstore.Info{}, err)
			return
		}
		for info, err := range s.Store.List(ctx, prefix) {
			if err == nil && s.marked(ctx, info.Key) {
				continue
			}
			if !yield(info, err) {
				return
			}
		}
	}
}
