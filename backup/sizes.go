// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/chain"
)

// CheckpointSize says how much of a disk changed since a checkpoint.
type CheckpointSize struct {
	Checkpoint chain.CheckpointRef
	Disk       string
	Bytes      int64  // dirty, in whole granules
	Problem    string // why it cannot be told; Bytes is 0 then
}

// Sizes tells for every checkpoint of the domain how much changed since in the
// disks of the request, as an incremental backup would take it. It writes
// nothing.
func Sizes(ctx context.Context, repo *chain.Repository, req Request, hooks Hooks) ([]CheckpointSize, error) {
	s, err := newSession(repo, req, hooks, toNothing)
	if err != nil {
		return nil, err
	}
	defer s.close()
	if err := s.loadHistory(ctx); err != nil {
		return nil, err
	}
	if err := s.open(ctx); err != nil {
		return nil, err
	}
	s.recognize()
	var sizes []CheckpointSize
	for _, d := range s.disks {
		judge := s.judge(d)
		for _, st := range judge.States {
			size := CheckpointSize{Checkpoint: *st.Manifest.Ref(), Disk: st.Disk.Name}
			if size.Bytes, size.Problem, err = sizeSince(ctx, judge, st); err != nil {
				return nil, &chain.DiskError{Disk: d.req.Disk, Err: err}
			}
			sizes = append(sizes, size)
		}
	}
	return sizes, nil
}

func sizeSince(ctx context.Context, judge *trust.Judge, st chain.DiskState) (bytes int64, problem string, err error) {
	dirty, o, err := judge.Since(ctx, st)
	switch {
	case archive.IsDamage(err):
		return 0, err.Error(), nil
	case err != nil:
		return 0, "", err
	case o != nil:
		return 0, o.Reason, nil
	}
	bytes, err = dirty.Bytes()
	return bytes, "", err
}
