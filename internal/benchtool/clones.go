// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore/open"
)

// clones adds n checkpoints to a domain, which are its first one under other names.
func clones(place, domain, count string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	ctx := context.Background()
	store, err := open.Open(place, open.Options{})
	if err != nil {
		return err
	}
	repo, err := chain.Open(ctx, store)
	if err != nil {
		return err
	}
	ms, _, err := repo.Manifests(ctx, domain)
	if err != nil {
		return err
	}
	if len(ms) == 0 {
		return fmt.Errorf("there is no checkpoint of %s", domain)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i := range n {
		g.Go(func() error {
			m := *ms[0]
			m.Checkpoint, m.UUID, m.Disks = fmt.Sprintf("clone%d", i), chain.NewUUID(), slices.Clone(m.Disks)
			for j := range m.Disks {
				d := &m.Disks[j]
				d.Bitmap, d.Granularity, d.NoBitmapReason = "", 0, "a clone"
			}
			return repo.Commit(ctx, &m)
		})
	}
	return g.Wait()
}
