// SPDX-License-Identifier: Apache-2.0

package view

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
)

// Checkpoint is the disks of one checkpoint, open.
type Checkpoint struct {
	Manifest *chain.Manifest
	Disks    []*Disk

	reader *Reader
	own    bool // the reader is of this checkpoint alone
}

// ErrUnknownDisk says that the checkpoint has no disk of that name. It is wrong usage
// ([usage.Error]).
var ErrUnknownDisk = errors.New("no such disk in the checkpoint")

// UnknownDisk is an [ErrUnknownDisk] that says which disks there are.
func UnknownDisk(m *chain.Manifest, name string) error {
	var names []string
	for i := range m.Disks {
		names = append(names, m.Disks[i].Name)
	}
	return usage.Errorf("%w %s: %.80q (there is %s)", ErrUnknownDisk, m.Checkpoint, name, strings.Join(names, ", "))
}

// Open opens the disks of a checkpoint that names are of, or all where there are none, for
// as long as ctx lasts, or until Close; also where it was repacked since m was read. One that
// was forgotten since is a *chain.GoneError.
func Open(ctx context.Context, repo *chain.Repository, m *chain.Manifest, names []string, o Options) (*Checkpoint, error) {
	r := NewReader(ctx, repo, o)
	c, err := r.Checkpoint(ctx, m, names)
	if err != nil {
		r.Close()
		return nil, err
	}
	c.own = true
	return c, nil
}

// Checkpoint is [Open] of a checkpoint whose disks share what the reader keeps with all
// others of it, and are of no use after it is closed.
func (r *Reader) Checkpoint(ctx context.Context, m *chain.Manifest, names []string) (*Checkpoint, error) {
	for try := 0; ; try++ {
		c, err := r.openAsRead(ctx, m, names)
		if err == nil || try == renewals {
			return c, err
		}
		newer, err := r.repo.Reread(ctx, m, err)
		if newer == nil {
			return nil, err
		}
		m = newer
	}
}

// openAsRead is Checkpoint of what the manifest names.
func (r *Reader) openAsRead(ctx context.Context, m *chain.Manifest, names []string) (*Checkpoint, error) {
	if m.Kind != chain.KindArchive {
		return nil, fmt.Errorf("checkpoint %s holds no data: it is only in the images", m.Checkpoint)
	}
	c := &Checkpoint{Manifest: m, reader: r}
	if len(names) == 0 {
		for i := range m.Disks {
			names = append(names, m.Disks[i].Name)
		}
	}
	for _, name := range names {
		if err := c.open(ctx, name); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *Checkpoint) open(ctx context.Context, name string) error {
	entry, ok := c.Manifest.Disk(name)
	if !ok {
		return UnknownDisk(c.Manifest, name)
	}
	if slices.ContainsFunc(c.Disks, func(d *Disk) bool { return d.Name == name }) {
		return usage.Errorf("disk %s is given twice", name)
	}
	if len(entry.Maps) == 0 {
		return &chain.DiskError{Disk: name, Err: fmt.Errorf("checkpoint %s has no data of it in the repository", c.Manifest.Checkpoint)}
	}
	d, err := c.reader.Open(ctx, entry)
	if err != nil {
		return &chain.DiskError{Disk: name, Err: err}
	}
	d.windows.reopen = c.reopen(name)
	c.Disks = append(c.Disks, d)
	return nil
}

// reopen opens a disk anew where a prune has put other objects in the place of those that
// the manifest named when it was read; see [chain.Repository.Reread].
func (c *Checkpoint) reopen(name string) func(context.Context, error) (*Layout, error) {
	m := c.Manifest
	return func(ctx context.Context, err error) (*Layout, error) {
		newer, err := c.reader.repo.Reread(ctx, m, err)
		if newer == nil {
			return nil, err
		}
		entry, ok := newer.Disk(name)
		if !ok {
			return nil, err
		}
		l, err := c.reader.layout(ctx, entry)
		if err != nil {
			return nil, err
		}
		m = newer
		return l, nil
	}
}

// Close ends all that is at work for a checkpoint that [Open] opened: no disk of it may be
// read any more. Of another one, its [Reader] is closed.
func (c *Checkpoint) Close() {
	if c.own {
		c.reader.Close()
	}
}

// Older opens the layout of a disk as another checkpoint of the domain has it, to be
// compared with: see [Layout.ChangedSince].
func (c *Checkpoint) Older(ctx context.Context, older chain.DiskState) (*Layout, error) {
	if !older.HasData() {
		return nil, fmt.Errorf("checkpoint %s holds no data of disk %s to compare with", older.Manifest.Checkpoint, older.Disk.Name)
	}
	l, err := OpenLayout(ctx, c.reader.repo, older.Disk)
	if err != nil {
		return nil, &chain.DiskError{Disk: older.Disk.Name, Err: fmt.Errorf("checkpoint %s: %w", older.Manifest.Checkpoint, err)}
	}
	return l, nil
}
