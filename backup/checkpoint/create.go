// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"context"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
)

// Create makes a checkpoint without data: it adds a bitmap to every disk, all for the same
// instant, in the writing order that every backup has; see [backup.Record].
func Create(ctx context.Context, repo *chain.Repository, req backup.Request, hooks backup.Hooks) (*chain.Manifest, error) {
	result, err := backup.Record(ctx, repo, req, hooks)
	if err != nil {
		return nil, err
	}
	return result.Manifest, nil
}
