// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"context"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/outfile"
)

// Prove proves the maps of the disks that are to be restored, as [Run] does before it writes, and
// returns how much they hold. It looks at no place where they go. Errors are Run's.
func Prove(ctx context.Context, repo *chain.Repository, m *chain.Manifest, targets []Target, o Options) (sum outfile.Amounts, err error) {
	r := &restoring{repo: repo, m: m, o: o, p: &progress{},
		fetcher: archive.NewFetcher(repo.Store, archive.FetcherOptions{Parallel: o.Workers, Memory: repo.Memory})}
	if err := r.check(targets); err != nil {
		return sum, err
	}
	for _, t := range targets {
		j, err := r.newJob(t)
		if err != nil {
			return sum, err
		}
		amounts, err := j.how.prove(ctx)
		j.how.close()
		if err != nil {
			return sum, err
		}
		sum.Data, sum.Zero = sum.Data+amounts.Data, sum.Zero+amounts.Zero
	}
	return sum, nil
}
