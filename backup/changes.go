// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"fmt"
	"slices"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
)

// DiskChanges is where a disk may differ between two points in time.
type DiskChanges struct {
	Disk string
	Size int64 // of the disk at the later point, bytes
	Runs bitmapstore.Runs
	How  string // what tells it, for people
}

// ChangesBetween tells where each disk that both checkpoints have may differ
// between them: by their archives' maps, or by the bitmaps that checkpoints
// recorded and found sound. Where nothing links the two, it is a
// *NotTrustedError. No image is opened.
func ChangesBetween(ctx context.Context, repo *chain.Repository, domain, from, to string) ([]DiskChanges, error) {
	s := &session{repo: repo, req: Request{Domain: domain}, states: newArchives(repo)}
	history, damaged, err := repo.Manifests(ctx, domain)
	if err != nil {
		return nil, err
	}
	s.history = history
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
	var all []DiskChanges
	for i := range ends[1].Disks {
		disk := ends[1].Disks[i].Name
		states, ok := chain.StatesOfBoth(history, ends[1], disk, ends[0])
		if !ok {
			continue
		}
		c, err := s.changesBetween(ctx, disk, states, ends[0], ends[1])
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

// link is what is known to have changed between two states, in either direction.
type link struct {
	to   chain.DiskState
	runs bitmapstore.Runs
	how  string
}

// changesBetween goes the shortest way from one state to the other: where two
// states differ, and where one of them differs from a third, contains where the
// other does.
func (s *session) changesBetween(ctx context.Context, target string, states chain.States, from, to *chain.Manifest) (DiskChanges, error) {
	start, _ := states.WithUUID(from.UUID)
	goal, _ := states.WithUUID(to.UUID)
	type step struct {
		at   chain.DiskState
		sets []bitmapstore.Runs
		size int64 // the smallest on the way
		how  string
	}
	seen := map[string]bool{start.Manifest.UUID: true}
	queue := []step{{at: start, size: start.Disk.Size}}
	for len(queue) > 0 {
		here := queue[0]
		queue = queue[1:]
		if here.at.Manifest == goal.Manifest {
			size := goal.Disk.Size
			runs := bitmapstore.Union(append(here.sets, bitmapstore.Between(min(here.size, size), size))...).Clip(size)
			return DiskChanges{Disk: target, Size: size, Runs: runs, How: here.how}, nil
		}
		for _, l := range s.linksOf(ctx, here.at, states, goal) {
			if seen[l.to.Manifest.UUID] {
				continue
			}
			seen[l.to.Manifest.UUID] = true
			how := here.how
			if how != "" {
				how += ", "
			}
			queue = append(queue, step{
				at: l.to, sets: append(slices.Clone(here.sets), l.runs), size: min(here.size, l.to.Disk.Size), how: how + l.how,
			})
		}
	}
	return DiskChanges{}, &NotTrustedError{Disk: target, Code: trust.ReasonBrokenLine, Reason: fmt.Sprintf(
		"no archives and no recorded bitmaps tell what changed in %s between %s and %s", target, from.Checkpoint, to.Checkpoint)}
}

// linksOf lists the states that one is linked with, the goal first.
func (s *session) linksOf(ctx context.Context, at chain.DiskState, states chain.States, goal chain.DiskState) []link {
	var links []link
	for _, other := range states {
		if other.Manifest == at.Manifest {
			continue
		}
		older, newer := at, other
		if older.Manifest.Sequence > newer.Manifest.Sequence {
			older, newer = newer, older
		}
		i := slices.IndexFunc(newer.Disk.Witnesses, func(r chain.BitmapRecord) bool {
			return r.Sound && r.Layer == 0 && r.Name == older.Disk.Bitmap
		})
		switch {
		case at.HasData() && other.HasData():
			links = append(links, link{other, s.differences(ctx, other, at), fmt.Sprintf("archives of %s and %s", older.Manifest.Checkpoint, newer.Manifest.Checkpoint)})
		case i >= 0 && older.Disk.Bitmap != "":
			runs := opened(func() (bitmapstore.Runs, error) { return s.states.Bitmap(ctx, &newer.Disk.Witnesses[i]) })
			links = append(links, link{other, runs, fmt.Sprintf("bitmap of %s as of %s", older.Manifest.Checkpoint, newer.Manifest.Checkpoint)})
		}
	}
	slices.SortStableFunc(links, func(a, b link) int {
		rank := func(l link) int {
			if l.to.Manifest == goal.Manifest {
				return 0
			}
			return 1
		}
		return rank(a) - rank(b)
	})
	return links
}

// differences compares two archived states by their maps.
func (s *session) differences(ctx context.Context, a, b chain.DiskState) bitmapstore.Runs {
	return opened(func() (bitmapstore.Runs, error) {
		newer, err := chain.ReplayMaps(ctx, s.repo, a.Disk)
		if err != nil {
			return nil, err
		}
		older, err := chain.ReplayMaps(ctx, s.repo, b.Disk)
		if err != nil {
			return nil, err
		}
		return archive.Diff(ctx, newer, older), nil
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
