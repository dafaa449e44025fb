// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"context"
	"fmt"
	"runtime"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/outfile"
)

// native writes raw and qcow2 itself: chunks are fetched and decoded in any order, and
// written where they belong.
type native struct {
	repo *chain.Repository
	disk *chain.Disk
	o    *Options
	src  source
}

func (n *native) prove(ctx context.Context) (outfile.Amounts, error) {
	n.src.disk, n.src.size = n.disk.Name, n.disk.Size
	var err error
	if n.src.maps, err = chain.ReplayMaps(ctx, n.repo, n.disk); err != nil {
		return outfile.Amounts{}, n.src.damage(err, 0, n.src.size)
	}
	if have := n.src.maps[0].Size(); have != n.src.size {
		return outfile.Amounts{}, &chain.DiskError{Disk: n.src.disk, Err: fmt.Errorf("the manifest says that it has %d bytes, its map %d", n.src.size, have)}
	}
	return n.src.count(ctx)
}

func (n *native) write(ctx context.Context, j *job, p *progress) error {
	return n.src.copyTo(ctx, j.out, n.o.Limit, p)
}

func (n *native) verify(ctx context.Context, j *job, p *progress) error {
	workers := n.o.Workers
	if workers == 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	return n.src.verify(ctx, j, workers, p)
}

func (*native) close() {}
