// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
)

// destination is where the disks of a run go: all in which an archive, a push, a pull and
// a mere checkpoint differ. The writing order, in run.go, is one for all of them.
type destination interface {
	// choose fills in how a disk goes there: mode, detection, reason, what it is based on.
	choose(ctx context.Context, d *disk, p *DiskPlan) error
	// accept refuses a plan that cannot be carried out, before anything is written
	// anywhere.
	accept(plan *Plan) error
	// write makes the disks' data durable there, the images being locked, and returns the
	// manifest of the new checkpoint, all that it names being durable; nil if none is made.
	write(ctx context.Context, plan *Plan) (*chain.Manifest, archive.Stats, error)
	// commit makes count what was written, and creates the manifest, unless it is nil.
	// What it cannot tidy up once the manifest stands is no failure.
	commit(ctx context.Context, plan *Plan, m *chain.Manifest) error
	// after does what is to be done when all of it stands.
	after(ctx context.Context, plan *Plan) error
}

// asker is a destination that can begin to ask the repository for what it needs to choose how a
// disk goes there, before that disk's turn.
type asker interface {
	ask(ctx context.Context, d *disk)
}
