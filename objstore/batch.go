// SPDX-License-Identifier: Apache-2.0

package objstore

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"
)

// BatchDeleter is a store that removes many objects at once.
type BatchDeleter interface {
	// DeleteBatch removes objects, at most MaxBatch; those that are absent count as
	// removed. It tries nothing again. A *BatchError says which of them the store
	// refused to remove, and the others are gone; after any other error each may be
	// there or gone.
	DeleteBatch(ctx context.Context, keys []string) error
}

// MaxBatch bounds what is removed at once: what S3 allows.
const MaxBatch = 1000

// BatchError says which objects of a batch were not removed. The store's own word
// about each is in Errs, in the order of Keys.
type BatchError struct {
	Keys []string
	Errs []error
}

func (e *BatchError) Error() string {
	if len(e.Keys) == 1 {
		return e.Errs[0].Error()
	}
	return fmt.Sprintf("%d objects were not removed, the first: %v", len(e.Keys), e.Errs[0])
}

// Unwrap returns the first error.
func (e *BatchError) Unwrap() error { return e.Errs[0] }

// batchDeletes is how many objects are removed at once where each is a request.
const batchDeletes = 16

// DeleteBatch removes objects as [BatchDeleter] says, one by one where the store is
// no such.
func DeleteBatch(ctx context.Context, s Store, keys []string) error {
	if len(keys) > MaxBatch {
		return fmt.Errorf("%d objects are more than can be removed at once", len(keys))
	}
	if b, ok := As[BatchDeleter](s); ok {
		return b.DeleteBatch(ctx, keys)
	}
	return DeleteEach(ctx, keys, s.Delete)
}

// DeleteEach removes objects one by one, several at a time, and tells as a
// *BatchError which could not be.
func DeleteEach(ctx context.Context, keys []string, remove func(ctx context.Context, key string) error) error {
	var mu sync.Mutex
	failed := &BatchError{}
	var g errgroup.Group
	g.SetLimit(batchDeletes)
	var ended error // why not all were asked for
	for _, key := range keys {
		if err := ctx.Err(); err != nil {
			ended = errors.Join(context.Cause(ctx), err)
			break
		}
		g.Go(func() error {
			if err := remove(ctx, key); err != nil {
				mu.Lock()
				failed.Keys, failed.Errs = append(failed.Keys, key), append(failed.Errs, err)
				mu.Unlock()
			}
			return nil
		})
	}
	_ = g.Wait() // what failed is in failed
	switch {
	case ended != nil:
		return ended
	case ctx.Err() != nil && len(failed.Keys) > 0: // that may be why
		return errors.Join(context.Cause(ctx), ctx.Err())
	case len(failed.Keys) > 0:
		return failed
	}
	return nil
}
