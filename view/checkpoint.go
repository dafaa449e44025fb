// SPDX-License-Identifier: Apache-2.0

package view

import (
	"context"
	"errors"
	"fmt"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
)

// Checkpoint is the disks of one checkpoint, open.
type Checkpoint struct {
	Manifest *chain.Manifest
	Disks    []*Disk

	repo   *chain.Repository
	cancel context.CancelFunc
	chunks *chunks
}

// Options are the settings of Open; the zero value is good.
type Options struct {
	Disks []string // which; none: all
	Cache int64    // bytes of decoded chunks that are kept; 0: 64 MiB
}

// ErrUnknownDisk says that the checkpoint has no disk of that name. It is wrong usage
// ([usage.Error]).
var ErrUnknownDisk = errors.New("no such disk in the checkpoint")

// Open opens the disks of a checkpoint for as long as ctx lasts, or until Close.
func Open(ctx context.Context, repo *chain.Repository, m *chain.Manifest, o Options) (*Checkpoint, error) {
	if m.Kind != chain.KindArchive {
		return nil, fmt.Errorf("checkpoint %s holds no data: it is only in the images", m.Checkpoint)
	}
	if o.Cache <= 0 {
		o.Cache = 64 << 20
	}
	ctx, cancel := context.WithCancel(ctx)
	c := &Checkpoint{Manifest: m, repo: repo, cancel: cancel}
	c.chunks = newChunks(ctx, repo.Store, o.Cache)
	if err := c.open(ctx, o.Disks); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Checkpoint) open(ctx context.Context, names []string) error {
	if len(names) == 0 {
		for i := range c.Manifest.Disks {
			names = append(names, c.Manifest.Disks[i].Name)
		}
	}
	for _, name := range names {
		entry, ok := c.Manifest.Disk(name)
		if !ok {
			return usage.Errorf("%w %s: %.80q", ErrUnknownDisk, c.Manifest.Checkpoint, name)
		}
		for _, d := range c.Disks {
			if d.Name == name {
				return fmt.Errorf("disk %s is given twice", name)
			}
		}
		if len(entry.Maps) == 0 {
			return fmt.Errorf("disk %s of checkpoint %s has no data in the repository", name, c.Manifest.Checkpoint)
		}
		maps, err := chain.ReplayMaps(ctx, c.repo, entry)
		if err != nil {
			return fmt.Errorf("disk %s: %w", name, err)
		}
		c.Disks = append(c.Disks, &Disk{Name: name, size: entry.Size, layout: newLayout(ctx, maps), chunks: c.chunks})
	}
	return nil
}

// Close ends all that is at work.
func (c *Checkpoint) Close() {
	c.cancel()
	c.chunks.work.Wait() // what reads ahead asks the layouts
	for _, d := range c.Disks {
		d.layout.work.Wait()
	}
}

// Changes returns, for each disk that older has too, what may read otherwise than
// there: see [archive.DiffIn]. What older does not have counts as changed.
func (c *Checkpoint) Changes(ctx context.Context, older *chain.Manifest, d *Disk) (func(ctx context.Context, start, end int64) bitmapstore.Runs, error) {
	entry, ok := older.Disk(d.Name)
	if !ok || older.Kind != chain.KindArchive || len(entry.Maps) == 0 {
		return nil, fmt.Errorf("checkpoint %s holds no data of disk %s to compare with", older.Checkpoint, d.Name)
	}
	maps, err := chain.ReplayMaps(ctx, c.repo, entry)
	if err != nil {
		return nil, fmt.Errorf("checkpoint %s, disk %s: %w", older.Checkpoint, d.Name, err)
	}
	return func(ctx context.Context, start, end int64) bitmapstore.Runs {
		return archive.DiffIn(ctx, d.layout.maps, maps, start, end)
	}, nil
}
