// SPDX-License-Identifier: Apache-2.0

package objstore

import (
	"context"
	"errors"
	"fmt"
)

// SingleWriter returns a store for the only program that writes to s, where s
// does not honour conditions: Create looks first, and then writes. Two writers
// at once could store over each other.
func SingleWriter(s Store) Store { return &singleWriter{s} }

type singleWriter struct{ Store }

// Unwrap returns the store that is written to.
func (s *singleWriter) Unwrap() Store { return s.Store }

// Put implements Store.
func (s *singleWriter) Put(ctx context.Context, key string, body Body, mode Mode) error {
	if mode == Create {
		_, err := s.Stat(ctx, key)
		if err == nil {
			return fmt.Errorf("store %s: %w", key, ErrExists)
		}
		if !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	return s.Store.Put(ctx, key, body, Replace)
}
