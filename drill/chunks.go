// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/drill/record"
)

// chunks is the step that fetches and proves every chunk of the checkpoint that was not
// in this run.
type chunks struct{ p *prover }

func (*chunks) Name() string { return record.StepChunks }

func (c *chunks) Run(ctx context.Context, s *Subject) (Result, error) {
	var res Result
	var proven, stored, count int64
	var first string
	for _, d := range s.Disks {
		if len(d.Lost) > 0 {
			return Fail((&chain.LostError{Disk: d}).Error(), todoLost), nil
		}
		pr, err := c.p.prove(ctx, d, s.teller(record.StepChunks))
		if archive.IsDamage(err) {
			return s.damage(ctx, &chain.DiskError{Disk: d.Name, Err: err})
		}
		if err != nil {
			return Result{}, &chain.DiskError{Disk: d.Name, Err: err}
		}
		if pr.Missing != nil {
			if res, err := s.damage(ctx, pr.Missing); err != nil || res.Status != record.Failed {
				return res, err
			}
		}
		proven, stored, count = proven+pr.Bytes, stored+pr.Stored, count+pr.Chunks
		if len(pr.Damage) > 0 && first == "" {
			first = pr.text(d.Name)
		}
	}
	res = Pass("")
	if first != "" {
		res = Fail(first, todoDamage)
	}
	res.Bytes = proven
	res.Details = map[string]string{
		"chunks": strconv.FormatInt(count, 10), "fetched_bytes": strconv.FormatInt(stored, 10),
	}
	return res, nil
}

// What a person should do.
const (
	todoDamage = "imgbackup repair --from another repository, or --image an image that still has the bytes;" +
		" then drill again. imgbackup check --read-data tells what else is damaged"
	todoLost = "drill an older or newer checkpoint: what this one has lost is in no repository that was asked (imgbackup show tells what)"
	todoGone = "choose another checkpoint: imgbackup list shows them"
)

// damage says what damage means, which may be that the checkpoint is another by now.
func (s *Subject) damage(ctx context.Context, err error) (Result, error) {
	newer, rerr := s.Repo.Reread(ctx, s.Manifest, err)
	switch {
	case newer != nil:
		return Result{}, &repackedError{newer}
	case errors.As(rerr, new(*chain.GoneError)):
		return Skip(rerr.Error(), todoGone), nil
	case !archive.IsDamage(rerr):
		return Result{}, rerr
	}
	return Fail(err.Error(), todoDamage), nil
}

// repackedError says that a prune has given the checkpoint other objects meanwhile.
type repackedError struct{ newer *chain.Manifest }

func (e *repackedError) Error() string {
	return fmt.Sprintf("checkpoint %s was repacked meanwhile", e.newer.Checkpoint)
}

// teller tells of a step's progress.
func (s *Subject) teller(step string) func(n int64) {
	return func(n int64) { s.Told(step, n) }
}
