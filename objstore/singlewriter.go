// SPDX-License-Identifier: Apache-2.0

package objstore

import (
	"context"
	"errors"
	"fmt"
)

// SingleWriter returns a store for the only program that writes to s, where s
// does not honour conditions: Create and Old look first, and then write. Two writers
// at once could store over each other.
func SingleWriter(s Store) Store { return &singleWriter{s} }

type singleWriter struct{ Store }

// Unwrap returns the store that is written to.
func (s *singleWriter) Unwrap() Store { return s.Store }

// Put implements Store.
func (s *singleWriter) Put(ctx context.Context, key string, body Body, o PutOptions) error {
	if err := o.Check(); err != nil {
		return err
	}
	if o.Mode == Create {
		_, err := s.Stat(ctx, key)
		if err == nil {
			return fmt.Errorf("store %s: %w", key, ErrExists)
		}
		if !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	if o.Old != nil {
		if err := CheckStands(ctx, s.Store, key, o.Old); err != nil {
			return fmt.Errorf("store %s: %w", key, err)
		}
	}
	o.Mode, o.Old = Replace, nil
	return s.Store.Put(ctx, key, body, o)
}
