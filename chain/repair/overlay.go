// SPDX-License-Identifier: Apache-2.0

package repair

import (
	"context"
	"errors"
	"io"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
)

// overlay reads some objects from where they will be fetched.
type overlay struct {
	objstore.Store
	from map[string]*chain.Repository
}

func (o *overlay) at(key string) objstore.Store {
	if r := o.from[key]; r != nil {
		return r.Store
	}
	return o.Store
}

// overlaid is the store as it will be, to be read: with the repository's keys, since what is
// fetched from others has the same name, and so the same bytes.
func (l *planner) overlaid() objstore.Store {
	return archive.Encrypted(l.over, archive.KeysOf(l.repo.Store))
}

// Get implements [objstore.Store].
func (o *overlay) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	return o.at(key).Get(ctx, key, offset, length)
}

// Stat implements [objstore.Store].
func (o *overlay) Stat(ctx context.Context, key string) (objstore.Info, error) {
	return o.at(key).Stat(ctx, key)
}

// hiding is a store in which some objects are not, for who reads. A writer that makes one of
// them again replaces it.
type hiding struct {
	objstore.Store
	keys map[string]bool
}

func (h *hiding) check(key string) error {
	if h.keys[key] {
		return objstore.MarkNotFound(errors.New("it is done without"))
	}
	return nil
}

// Get implements [objstore.Store].
func (h *hiding) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := h.check(key); err != nil {
		return nil, err
	}
	return h.Store.Get(ctx, key, offset, length)
}

// Stat implements [objstore.Store].
func (h *hiding) Stat(ctx context.Context, key string) (objstore.Info, error) {
	if err := h.check(key); err != nil {
		return objstore.Info{}, err
	}
	return h.Store.Stat(ctx, key)
}
