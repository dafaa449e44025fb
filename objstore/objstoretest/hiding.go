// SPDX-License-Identifier: Apache-2.0

package objstoretest

import (
	"context"
	"iter"

	"github.com/imgbackup/imgbackup/objstore"
)

// Hiding is a store whose listings leave objects out, which are there. What stands
// between a program and its store can do that: a cache, or a server that lost its
// index.
type Hiding struct {
	objstore.Store
	Hidden func(key string) bool
}

// List implements objstore.Store.
func (h *Hiding) List(ctx context.Context, prefix string) iter.Seq2[objstore.Info, error] {
	return func(yield func(objstore.Info, error) bool) {
		for info, err := range h.Store.List(ctx, prefix) {
			if err == nil && h.Hidden(info.Key) {
				continue
			}
			if !yield(info, err) {
				return
			}
		}
	}
}
