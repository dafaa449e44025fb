// SPDX-License-Identifier: Apache-2.0

package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/objstore"
)

var _ objstore.BatchDeleter = (*Store)(nil)

// DeleteBatch implements objstore.BatchDeleter: each folder is synced once.
func (l *Store) DeleteBatch(ctx context.Context, keys []string) error {
	for _, key := range keys {
		if err := objstore.CheckKey(key); err != nil {
			return err
		}
	}
	keys = slices.Sorted(slices.Values(keys))
	refused := &objstore.BatchError{}
	for len(keys) > 0 {
		folder, _ := splitKey(keys[0])
		n := 1
		for n < len(keys) && sameFolder(keys[n], folder) {
			n++
		}
		if err := l.removeFrom(ctx, folder, keys[:n], refused); err != nil {
			return fmt.Errorf("delete objects of %s: %w", folder, explain(err))
		}
		keys = keys[n:]
	}
	if len(refused.Keys) > 0 {
		return refused
	}
	return nil
}

func sameFolder(key, folder string) bool {
	f, _ := splitKey(key)
	return f == folder
}

// removeFrom removes objects of one folder; those that can't be are added to refused.
func (l *Store) removeFrom(ctx context.Context, folder string, keys []string, refused *objstore.BatchError) (err error) {
	dir, err := l.openFolder(folder)
	if errors.Is(err, objstore.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	for _, key := range keys {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := l.unlink(ctx, key, dir); err != nil && !errors.Is(err, objstore.ErrNotFound) {
			refused.Keys = append(refused.Keys, key)
			refused.Errs = append(refused.Errs, fmt.Errorf("delete %s: %w", key, explain(err)))
		}
	}
	return l.folders.Sync(dir)
}

// unlink removes an object from its folder dir, not yet durably.
func (l *Store) unlink(ctx context.Context, key string, dir *os.File) error {
	_, name := splitKey(key)
	st, err := sys.StatAt(dir, name)
	if err != nil {
		return l.absent(err)
	}
	if err := l.regular(filepath.Join(l.dir, key), st.Mode); err != nil {
		return err
	}
	return l.absent(l.replace(ctx, key, nil, dir, func() error { return sys.UnlinkAt(dir, name) }))
}
