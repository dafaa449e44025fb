// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"context"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
)

// Size says how much of a disk changed since a checkpoint.
type Size struct {
	Checkpoint chain.CheckpointRef
	Disk       string
	Bytes      int64  // dirty, in whole granules
	Problem    string // why it cannot be told; Bytes is 0 then
}

// Sizes returns for every checkpoint of the domain how much changed since in the disks of
// the request, as an incremental backup would take it. It writes nothing.
func Sizes(ctx context.Context, repo *chain.Repository, req backup.Request, hooks backup.Hooks) ([]Size, error) {
	var sizes []Size
	err := backup.Look(ctx, repo, req, hooks, func(ctx context.Context, disks []backup.Seen) error {
		for _, d := range disks {
			of, err := diskSizes(ctx, d.Judge, req.TempDir)
			if err != nil {
				return &chain.DiskError{Disk: d.Disk, Err: err}
			}
			sizes = append(sizes, of...)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return sizes, nil
}

// diskSizes goes from the newest state of a disk to the oldest.
func diskSizes(ctx context.Context, judge *trust.Judge, tempDir string) ([]Size, error) {
	line := sizeLine{judge: judge, tempDir: tempDir}
	defer line.end()
	var sizes []Size
	for _, st := range judge.States {
		size := Size{Checkpoint: *st.Manifest.Ref(), Disk: st.Disk.Name}
		var err error
		size.Bytes, size.Problem, err = line.size(ctx, st)
		switch {
		case archive.IsDamage(err):
			size.Bytes, size.Problem = 0, err.Error()
		case err != nil:
			return nil, err
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

// size is how many bytes changed since a state, or what keeps it from being known.
func (l *sizeLine) size(ctx context.Context, st chain.DiskState) (bytes int64, problem string, err error) {
	dirty, o, err := l.judge.Since(ctx, st)
	switch {
	case err != nil:
		return 0, "", err
	case o == nil:
		bytes, err = l.begin(ctx, st, dirty)
		return bytes, "", err
	case o.Code != trust.ReasonMissing || o.All:
		return 0, o.Reason, nil
	}
	bytes, reached, err := l.reach(ctx, st)
	if err == nil && !reached {
		problem = o.Reason
	}
	return bytes, problem, err
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
	if l.since == nil || l.at.Disk.IncrementalFrom == nil {
		return 0, false, nil
	}
	base := l.at.Disk.IncrementalFrom.UUID
	if _, stands := l.judge.States.WithUUID(base); stands && base != st.Manifest.UUID {
		return 0, false, nil // the line leads to that one
	}
	sets, o, err := l.judge.Line(ctx, st, l.at)
	if err != nil || o != nil {
		if err != nil || base == st.Manifest.UUID { // damaged, or stored whole
			l.end()
		}
		return 0, false, err
	}
	size := l.judge.Image.Size()
	changed := bitmapstore.Union(append(sets, l.since.From(0))...).Clip(size)
	// What was cut off, and came back as zeros when the disk grew again.
	changed = bitmapstore.Union(changed, bitmapstore.Between(l.judge.SmallestSince(st, size), size))
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
