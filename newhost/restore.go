// SPDX-License-Identifier: Apache-2.0

package newhost

import (
	"context"
	"errors"
	"fmt"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/restore"
)

// Run is what restores one checkpoint, as [restore.Run] does.
type Run func(ctx context.Context, repo *chain.Repository, m *chain.Manifest, targets []restore.Target, o restore.Options) (*restore.Result, error)

// Restore restores one domain that waits. It may be called for several at once; o are
// [Request.Options], and what differs of them for this one. Paths in the result are where files are in the
// end. After an error nothing of it is there, or, where only its name could not be made durable, all.
func (h *Host) Restore(ctx context.Context, d *Domain, o restore.Options, run Run) (res *restore.Result, err error) {
	defer func() {
		if err != nil {
			d.fail(err)
		}
	}()
	p, err := sys.NewWholeFolder(h.dir, partPrefix, &h.folders)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.Remove()) }()
	dir := p.Path()
	targets, err := d.targets(dir, h.req.Format)
	if err != nil {
		return nil, err
	}
	o.Files = d.files(dir, targets)
	o.ContinueSome = true
	h.step("restoring")
	if res, err = run(ctx, h.repo, d.Manifest, targets, o); err != nil {
		return nil, err
	}
	h.step("restored")
	if err := d.record(h, dir, res); err != nil {
		return nil, fmt.Errorf("write down what was restored: %w", err)
	}
	h.step("recorded")
	if err := p.Place(d.Name); err != nil {
		return nil, err
	}
	d.State = Restored
	h.step("placed")
	return res, nil
}
