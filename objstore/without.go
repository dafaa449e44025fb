// SPDX-License-Identifier: Apache-2.0

package objstore

import (
	"context"
	"errors"
	"io"
)

// Without returns a store in which some objects are not, for who reads. A writer that makes one
// of them again replaces it.
func Without(s Store, keys map[string]bool) Store { return &without{s, keys} }

type without struct {
	Store
	keys map[string]bool
}

func (w *without) check(key string) error {
	if w.keys[key] {
		return MarkNotFound(errors.New("it is done without"))
	}
	return nil
}

// Get implements [Store].
func (w *without) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := w.check(key); err != nil {
		return nil, err
	}
	return w.Store.Get(ctx, key, offset, length)
}

// Stat implements [Store].
func (w *without) Stat(ctx context.Context, key string) (Info, error) {
	if err := w.check(key); err != nil {
		return Info{}, err
	}
	return w.Store.Stat(ctx, key)
}
