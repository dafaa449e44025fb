// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/bitmapstore"
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
		of, err := s.diskSizes(ctx, s.judge(d))
		if err != nil {
			return nil, &chain.DiskError{Disk: d.req.Disk, Err: err}
		}
		sizes = append(sizes, of...)
	}
	return sizes, nil
}

// diskSizes goes from the newest state of a disk to the oldest.
func (s *session) diskSizes(ctx context.Context, judge *trust.Judge) ([]CheckpointSize, error) {
	line := sizeLine{judge: judge, tempDir: s.req.TempDir}
	defer line.end()
	var sizes []CheckpointSize
	for _, st := range judge.States {
		size := CheckpointSize{Checkpoint: *st.Manifest.Ref(), Disk: st.Disk.Name}
		dirty, o, err := judge.Since(ctx, st)
		switch {
		case archive.IsDamage(err):
			size.Problem = err.Error()
		case err != nil:
			return nil, err
		case o == nil:
			if size.Bytes, err = line.begin(ctx, st, dirty); err != nil {
				return nil, err
			}
		default:
			reached := false
			if o.Code == trust.ReasonMissing && !o.All {
				size.Bytes, reached, err = line.reach(ctx, st)
			}
			switch {
			case archive.IsDamage(err):
				size.Problem = err.Error()
			case err != nil:
				return nil, err
			case !reached:
				size.Problem = o.Reason
			}
		}
		sizes = append(sizes, size)
	}
	return sizes, nil
}

// sizeLine leads from the newest archive whose bitmap is believed to those before
// it, whose bitmaps a backup has taken out of the image: what changed since one of
// them is what the archives record since then, and what that bitmap shows. Each
// archive's record is read once.
type sizeLine struct {
	judge   *trust.Judge
	tempDir string
	at      chain.DiskState    // where it has come to
	since   *bitmapstore.Index // what changed since; nil: it has not begun, or is broken
}

// begin begins the line anew at a state whose bitmap is believed, and returns how
// many bytes changed since.
func (l *sizeLine) begin(ctx context.Context, st chain.DiskState, dirty bitmapstore.Runs) (int64, error) {
	if !st.HasData() {
		return dirty.Bytes() // no archive leads to it
	}
	return l.goOn(ctx, st, dirty)
}

// reach goes on to a state, if the line leads to it.
func (l *sizeLine) reach(ctx context.Context, st chain.DiskState) (bytes int64, reached bool, err error) {
	if l.since == nil || l.at.Disk.IncrementalFrom == nil || l.at.Disk.IncrementalFrom.UUID != st.Manifest.UUID {
		return 0, false, nil
	}
	changed, err := l.judge.Archive.Delta(ctx, l.at.Disk)
	if err != nil || changed == nil { // damaged, or stored whole
		l.end()
		return 0, false, err
	}
	size := l.judge.Image.Size()
	changed = bitmapstore.Union(l.since.From(0), changed).Clip(size)
	// What was cut off, and came back as zeros when the disk grew again.
	changed = bitmapstore.Union(changed, bitmapstore.Between(l.judge.States.SmallestSince(st, size), size))
	bytes, err = l.goOn(ctx, st, changed)
	return bytes, err == nil, err
}

func (l *sizeLine) goOn(ctx context.Context, st chain.DiskState, changed bitmapstore.Runs) (int64, error) {
	next, err := bitmapstore.NewIndex(ctx, changed, l.tempDir)
	if err != nil {
		return 0, err
	}
	l.end()
	l.at, l.since = st, next
	return next.Bytes(), nil
}

func (l *sizeLine) end() {
	if l.since != nil {
		l.since.Close()
		l.since = nil
	}
}
