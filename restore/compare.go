// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"context"
	"fmt"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/view"
)

// Compare proves that an image has just what a checkpoint has of the disk d: by the sums that
// were taken when it was written, which may be nil: then whole chunks are proven by their
// digests, and parts of chunks are fetched; and all else by its bytes. tell is told of the bytes of data that were compared. A difference is a
// [VerifyError], what is damaged in the repository a [DamageError].
func Compare(ctx context.Context, repo *chain.Repository, d *chain.Disk, image *qcow2.Image, path string, sums *Sums, tell func(n int64)) error {
	layout, err := view.OpenLayout(ctx, repo, d)
	if err != nil {
		return damage(d.Name, err, 0, d.Size)
	}
	v := &verifier{
		source: &source{Layout: layout, fetcher: archive.NewFetcher(repo.Store, archive.FetcherOptions{Memory: repo.Memory}), sums: sums},
		path:   path, w: qcow2Target{image}, workers: readers(repo), tell: tell,
	}
	if image.Size() != d.Size {
		return v.wrong(0, max(image.Size(), d.Size), fmt.Sprintf("it has %d bytes, and had %d", image.Size(), d.Size))
	}
	return v.run(ctx)
}
