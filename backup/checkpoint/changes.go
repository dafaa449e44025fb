// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"context"
	"fmt"
	"slices"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/view"
)

// Changes is where a disk may differ between two points in time.
type Changes struct {
	Disk string
	Size int64 // of the disk at the later point, bytes
	Runs bitmapstore.Runs
	How  string // what tells it, for people
}

// ChangesSince lets see have where each disk of the request may differ now from what it
// was at a checkpoint, by the bitmaps in its image, as an incremental backup would take
// it. The images are open, under QEMU's locks, until see returns, and nothing is written.
// Where no bitmap is believed, it is a [*backup.NotTrustedError].
func ChangesSince(ctx context.Context, repo *chain.Repository, req backup.Request, since string, hooks backup.Hooks, see func([]Changes) error) error {
	return backup.Look(ctx, repo, req, hooks, func(ctx context.Context, disks []backup.Seen) error {
		var all []Changes
		for _, d := range disks {
			v, err := d.ChangedSince(ctx, since)
			if err != nil {
				return &chain.DiskError{Disk: d.Disk, Err: err}
			}
			all = append(all, Changes{Disk: d.Disk, Size: d.Judge.Image.Size(), Runs: v.Dirty, How: v.Reason})
		}
		return see(all)
	})
}

// ChangesBetween returns where each disk that both checkpoints have may differ
// between them: by their archives' maps, or by the bitmaps that checkpoints
// recorded and found sound. Where nothing links the two, it is a
// [*backup.NotTrustedError]. No image is opened.
func ChangesBetween(ctx context.Context, repo *chain.Repository, domain, from, to string) ([]Changes, error) {
	history, damaged, err := repo.Manifests(ctx, domain)
	if err != nil {
		return nil, err
	}
	var ends [2]*chain.Manifest
	for i, name := range []string{from, to} {
		at := slices.IndexFunc(history, func(m *chain.Manifest) bool { return m.Checkpoint == name })
		if at < 0 {
			for _, err := range damaged {
				return nil, err
			}
			return nil, fmt.Errorf("domain %s: %w: %s", domain, chain.ErrNoCheckpoint, name)
		}
		ends[i] = history[at]
	}
	var all []Changes
	for i := range ends[1].Disks {
		disk := ends[1].Disks[i].Name
		states, ok := chain.StatesOfBoth(history, ends[1], disk, ends[0])
		if !ok {
			continue
		}
		g := graph{repo: repo, states: states}
		c, err := g.changes(ctx, disk, ends[0], ends[1])
		if err != nil {
			return nil, &chain.DiskError{Disk: disk, Err: err}
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("checkpoints %s and %s of domain %s have no disk in common", from, to, domain)
	}
	return all, nil
}

// graph is the recorded states of a disk, and what is known to have changed from one to
// another.
type graph struct {
	repo   *chain.Repository
	states chain.States
}

// link is what is known to have changed between two states, in either direction.
type link struct {
	to   chain.DiskState
	runs bitmapstore.Runs
	how  string
}

// route is a way over links.
type route struct {
	at   chain.DiskState
	sets []bitmapstore.Runs
	size int64 // the smallest on the way, bytes
	how  string
}

// by goes on over a link.
func (r route) by(l link) route {
	how := l.how
	if r.how != "" {
		how = r.how + ", " + l.how
	}
	return route{at: l.to, sets: append(slices.Clone(r.sets), l.runs), size: min(r.size, l.to.Disk.Size), how: how}
}

// changes goes the shortest way from one state to the other: where two states differ, and
// where one of them differs from a third, contains where the other does.
func (g *graph) changes(ctx context.Context, disk string, from, to *chain.Manifest) (Changes, error) {
	start, _ := g.states.WithUUID(from.UUID)
	goal, _ := g.states.WithUUID(to.UUID)
	seen := map[string]bool{start.Manifest.UUID: true}
	queue := []route{{at: start, size: start.Disk.Size}}
	for len(queue) > 0 {
		here := queue[0]
		queue = queue[1:]
		if here.at.Manifest == goal.Manifest {
			size := goal.Disk.Size
			runs := bitmapstore.Union(append(here.sets, bitmapstore.Between(min(here.size, size), size))...).Clip(size)
			return Changes{Disk: disk, Size: size, Runs: runs, How: here.how}, nil
		}
		for _, l := range g.linksOf(ctx, here.at, goal) {
			if !seen[l.to.Manifest.UUID] {
				seen[l.to.Manifest.UUID] = true
				queue = append(queue, here.by(l))
			}
		}
	}
	return Changes{}, &backup.NotTrustedError{Disk: disk, Code: trust.ReasonBrokenLine, Reason: fmt.Sprintf(
		"no archives and no recorded bitmaps tell what changed in %s between %s and %s", disk, from.Checkpoint, to.Checkpoint)}
}

// linksOf lists the states that one is linked with, the goal first.
func (g *graph) linksOf(ctx context.Context, at, goal chain.DiskState) []link {
	var links []link
	for _, other := range g.states {
		if other.Manifest == at.Manifest {
			continue
		}
		l, ok := g.link(ctx, at, other)
		switch {
		case !ok:
		case other.Manifest == goal.Manifest:
			links = slices.Insert(links, 0, l)
		default:
			links = append(links, l)
		}
	}
	return links
}

// link finds what tells the changes between two states: what they archived, or the older
// one's bitmap as the newer one recorded it.
func (g *graph) link(ctx context.Context, at, other chain.DiskState) (link, bool) {
	older, newer := at, other
	if older.Manifest.Sequence > newer.Manifest.Sequence {
		older, newer = newer, older
	}
	if at.HasData() && other.HasData() {
		return link{other, g.differences(ctx, other, at),
			fmt.Sprintf("archives of %s and %s", older.Manifest.Checkpoint, newer.Manifest.Checkpoint)}, true
	}
	i := slices.IndexFunc(newer.Disk.Witnesses, func(r chain.BitmapRecord) bool {
		return r.Sound && r.Layer == 0 && r.Name == older.Disk.Bitmap && r.Adopted == older.AdoptedAs()
	})
	if i < 0 || older.Disk.Bitmap == "" {
		return link{}, false
	}
	rec := &newer.Disk.Witnesses[i]
	runs := opened(func() (bitmapstore.Runs, error) {
		return archive.OpenBitmap(ctx, g.repo.Store, rec.Object, rec.Header())
	})
	return link{other, runs, fmt.Sprintf("bitmap of %s as of %s", older.Manifest.Checkpoint, newer.Manifest.Checkpoint)}, true
}

// differences compares two archived states by their maps.
func (g *graph) differences(ctx context.Context, a, b chain.DiskState) bitmapstore.Runs {
	return opened(func() (bitmapstore.Runs, error) {
		newer, err := view.OpenLayout(ctx, g.repo, a.Disk)
		if err != nil {
			return nil, err
		}
		older, err := view.OpenLayout(ctx, g.repo, b.Disk)
		if err != nil {
			return nil, err
		}
		return newer.ChangedSince(ctx, older, 0, newer.Size()), nil
	})
}

// opened is a set that is opened when it is asked for its runs.
func opened(open func() (bitmapstore.Runs, error)) bitmapstore.Runs {
	return func(yield func(bitmapstore.Run, error) bool) {
		runs, err := open()
		if err != nil {
			yield(bitmapstore.Run{}, err)
			return
		}
		runs(yield)
	}
}
