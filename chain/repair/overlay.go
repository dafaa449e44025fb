// SPDX-License-Identifier: Apache-2.0

package repair

import (
	"context"
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
func (p *Plan) overlaid() objstore.Store {
	return archive.Encrypted(p.over, archive.KeysOf(p.repo.Store))
}

// Get implements [objstore.Store].
func (o *overlay) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	return o.at(key).Get(ctx, key, offset, length)
}

// Stat implements [objstore.Store].
func (o *overlay) Stat(ctx context.Context, key string) (objstore.Info, error) {
	return o.at(key).Stat(ctx, key)
}
