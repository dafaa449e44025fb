// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"context"
	"runtime"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/outfile"
	"github.com/imgbackup/imgbackup/view"
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
	var err error
	if n.src.lost != nil {
		n.src.Layout, err = view.OpenTolerant(ctx, n.repo, n.disk, n.src.lost.Add)
	} else {
		n.src.Layout, err = view.OpenLayout(ctx, n.repo, n.disk)
	}
	if err != nil {
		return outfile.Amounts{}, damage(n.disk.Name, err, 0, n.disk.Size)
	}
	return n.src.count(ctx)
}

func (n *native) write(ctx context.Context, j *job, p *progress) error {
	if n.o.Verify || n.o.Sums {
		j.sums = newSums()
		n.src.sums = j.sums
	}
	return n.src.copyTo(ctx, j.out, n.o.Limit, p)
}

func (n *native) verify(ctx context.Context, j *job, p *progress) error {
	workers := n.o.Workers
	if workers == 0 {
		workers = readers(n.repo)
	}
	return n.src.verify(ctx, j, workers, p)
}

func (*native) close() {}

// readers is how many read a target back at once: each waits for the medium most of the time.
func readers(repo *chain.Repository) int { return repo.Memory.Count(max(4, runtime.GOMAXPROCS(0)), 2) }
