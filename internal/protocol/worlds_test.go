// SPDX-License-Identifier: Apache-2.0

package protocol_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/prune"
	"github.com/imgbackup/imgbackup/internal/protocol"
	"github.com/imgbackup/imgbackup/objstore"
)

// world is some processes, and what stands in the repository when they begin.
type world struct {
	title   string
	without map[protocol.Rule]bool
	before  func(s *setup)
	procs   func(w *setup) []*proc

	// head is how it begins, in every order: each names a process that goes on until it
	// has done an operation of which that is the beginning.
	head []string

	crashes, suspicions int // of live processes that are taken for dead
	fine                bool
}

// setup is the repository before anybody begins.
type setup struct {
	t    *testing.T
	repo *chain.Repository
	made map[string]*chain.Manifest
	*stock
}

// diskSize is that of all disks, bytes.
const diskSize = 512

// content is data of a disk, by a name of one letter.
func content(name string) []byte { return bytes.Repeat([]byte(name), diskSize) }

// stock are the objects of disks of any content, made once: packs, maps and indexes. To
// copy from there is what a copy does, and asks a store what a backup asks it, without
// compressing the same again and again.
type stock struct {
	store objstore.Store
	made  map[string][]archive.MapRef
}

func (k *stock) of(t *testing.T, what string) []archive.MapRef {
	if maps, ok := k.made[what]; ok {
		return maps
	}
	maps, err := backup(t.Context(), k.store, what)
	if err != nil {
		t.Fatal(err)
	}
	k.made[what] = maps
	return maps
}

// store stores a disk of this content, and returns its maps.
func (s *setup) store(ctx context.Context, to objstore.Store, what string) ([]archive.MapRef, error) {
	maps := s.of(s.t, what)
	opened, err := archive.OpenMap(context.Background(), s.stock.store, maps[0], 0)
	if err != nil {
		return nil, err
	}
	for _, pack := range opened.Packs() {
		if _, err := archive.CopyObject(ctx, s.stock.store, to, archive.PackKey(pack.Name), pack, ""); err != nil {
			return nil, err
		}
	}
	_, err = archive.CopyObject(ctx, s.stock.store, to, archive.MapKey(maps[0].Name), maps[0].Ref, "")
	return maps, err
}

// backup stores a disk of this content as a backup does.
func backup(ctx context.Context, s objstore.Store, what string) ([]archive.MapRef, error) {
	w, err := archive.NewWriter(ctx, s, archive.WriterOptions{Workers: 1})
	if err != nil {
		return nil, err
	}
	defer w.Abort() // does nothing after Finish
	data := content(what)
	m := w.NewMap("vda", int64(len(data)), true)
	err = m.Add(ctx, 0, int64(len(data)), func(context.Context, []byte) ([]archive.Piece, error) {
		return []archive.Piece{{Offset: 0, Length: int64(len(data)), Data: data}}, nil
	})
	if err != nil {
		return nil, err
	}
	maps, _, err := w.Finish(ctx)
	return maps, err
}

func manifest(name string, maps []archive.MapRef) *chain.Manifest {
	return &chain.Manifest{
		Kind: chain.KindArchive, Domain: "web", Host: chain.Host{Name: "h"}, Checkpoint: name, UUID: chain.NewUUID(), Sequence: 1,
		Created: time.Unix(1e9, 0).UTC(), Locking: chain.LockingNone, Requested: chain.ModeAuto,
		Disks: []chain.Disk{{
			Name: "vda", Source: chain.Source{Path: "/a", Format: "raw"}, Size: diskSize,
			Mode: chain.ModeFull, Detection: chain.DetectionNone, NoBitmapReason: "raw", Maps: maps,
		}},
	}
}

// checkpoint makes one before anybody begins.
func (s *setup) checkpoint(name, what string) {
	maps, err := s.store(s.t.Context(), s.repo.Store, what)
	if err != nil {
		s.t.Fatal(err)
	}
	m := manifest(name, maps)
	if err := s.repo.Commit(s.t.Context(), m); err != nil {
		s.t.Fatal(err)
	}
	s.made[name] = m
}

// leftover stores objects that no checkpoint needs.
func (s *setup) leftover(what string) {
	if _, err := s.store(s.t.Context(), s.repo.Store, what); err != nil {
		s.t.Fatal(err)
	}
}

// expected are errors with which a process may end: they all say that somebody else was
// faster, or that it was taken for dead.
func expected(err error) bool {
	for _, target := range []any{
		new(*chain.TakenError), new(*chain.BrokenError), new(*chain.GoneError), new(*chain.RevisedError), new(*chain.MarkStandsError),
	} {
		if errors.As(err, target) {
			return true
		}
	}
	return errors.Is(err, errCrashed) || errors.Is(err, prune.ErrLostMark) || errors.Is(err, chain.ErrMarkChanged)
}

// writer makes checkpoints one after the other, each of its content, as a backup does,
// or a copy of several.
func (s *setup) writer(name string, commits ...[2]string) *proc {
	return &proc{name: name, crashes: true, do: func(ctx context.Context, p *proc) (err error) {
		var hold *chain.Hold
		if len(commits) == 1 {
			hold, err = p.repo.HoldFor(ctx, name, "web", commits[0][0])
		} else {
			hold, err = p.repo.Hold(ctx, name)
		}
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, hold.Release(ctx)) }()
		for _, c := range commits {
			maps, err := s.store(ctx, hold.Store(), c[1])
			if err != nil {
				return err
			}
			if err := hold.Commit(ctx, manifest(c[0], maps)); err != nil {
				return err
			}
		}
		return nil
	}}
}

// again makes the same checkpoint once more, byte by byte, as a copy does from another
// repository.
func (s *setup) again(name, checkpoint, what string) *proc {
	return &proc{name: name, crashes: true, do: func(ctx context.Context, p *proc) (err error) {
		hold, err := p.repo.Hold(ctx, name)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, hold.Release(ctx)) }()
		m := *s.made[checkpoint]
		m.OverVoid = ""
		if _, err := s.store(ctx, hold.Store(), what); err != nil {
			return err
		}
		return hold.Commit(ctx, &m)
	}}
}

// increment makes a checkpoint that builds on another: it names what that has, and
// stores nothing of it.
func (s *setup) increment(name, checkpoint, on string) *proc {
	return &proc{name: name, crashes: true, do: func(ctx context.Context, p *proc) (err error) {
		base, err := p.repo.Manifest(ctx, "web", on) // as the plan of a backup does
		if err != nil {
			return nil // there is nothing to build on
		}
		hold, err := p.repo.HoldFor(ctx, name, "web", checkpoint)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, hold.Release(ctx)) }()
		if err := errors.Join(hold.CheckStands(ctx, base), hold.RelyOn(ctx, base)); err != nil {
			return err
		}
		return hold.Commit(ctx, manifest(checkpoint, base.Disks[0].Maps))
	}}
}

// repacker gives a checkpoint other objects.
func (s *setup) repacker(name, checkpoint, what string) *proc {
	return &proc{name: name, crashes: true, do: func(ctx context.Context, p *proc) (err error) {
		w, err := p.repo.BeginRepack(ctx)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, w.End(ctx)) }()
		maps, err := s.store(ctx, p.repo.Store, what)
		if err != nil {
			return err
		}
		m, err := p.repo.Manifest(ctx, "web", checkpoint)
		if err != nil {
			return nil
		}
		m.Disks = append([]chain.Disk(nil), m.Disks...)
		m.Disks[0].Maps = maps
		return w.Revise(ctx, m)
	}}
}

// pruner prunes, and once more if it had to leave something.
func pruner(name string) *proc {
	return &proc{name: name, crashes: true, do: func(ctx context.Context, p *proc) error {
		for range 2 {
			result, err := prune.Run(ctx, p.repo, prune.Options{MaxUnused: prune.Limit{Unlimited: true}})
			if err != nil || len(result.Waiting) == 0 {
				return err
			}
			if err := protocol.Pause(ctx, time.Second); err != nil {
				return err
			}
		}
		return nil
	}}
}

// forgetter forgets a checkpoint.
func forgetter(name, checkpoint string) *proc {
	return &proc{name: name, do: func(ctx context.Context, p *proc) error {
		m, err := p.repo.Manifest(ctx, "web", checkpoint)
		if err != nil {
			return nil
		}
		return p.repo.Forget(ctx, m)
	}}
}

// worlds are those of the model, with real code.
func worlds() map[string]*world {
	one := func(name, what string) [2]string { return [2]string{name, what} }
	m0 := func(s *setup) { s.checkpoint("m0", "a") }
	return map[string]*world{
		"forgotten": {
			title: "a writer, a pruner, a forgotten checkpoint", suspicions: 1, before: m0,
			procs: func(s *setup) []*proc {
				return []*proc{s.writer("W", one("m1", "a")), pruner("P"), forgetter("F", "m0")}
			},
		},
		"two writers": {
			title: "two writers, a pruner, a forgotten checkpoint", before: m0,
			procs: func(s *setup) []*proc {
				return []*proc{s.writer("W1", one("m1", "a")), s.writer("W2", one("m2", "a")), pruner("P"), forgetter("F", "m0")}
			},
		},
		"leftovers": {
			title: "a pruner, a writer that needs leftovers, a crash", crashes: 1, suspicions: 1,
			before: func(s *setup) { s.leftover("a") },
			procs: func(s *setup) []*proc {
				return []*proc{s.writer("W", one("m1", "a")), pruner("P")}
			},
		},
		"two pruners": {
			title: "a writer, two pruners, leftovers", suspicions: 2,
			before: func(s *setup) { s.leftover("a"); s.leftover("b") },
			procs: func(s *setup) []*proc {
				return []*proc{s.writer("W", one("m1", "a")), pruner("P1"), pruner("P2")}
			},
		},
		"repack": {
			title: "a repack, a writer, a pruner, a crash", crashes: 1, suspicions: 1, before: m0,
			procs: func(s *setup) []*proc {
				return []*proc{s.repacker("R", "m0", "c"), s.writer("W", one("m1", "a")), pruner("P")}
			},
		},
		"copy": {
			title: "a copy: two commits under one lease, a pruner", suspicions: 1,
			before: func(s *setup) { s.leftover("a"); s.leftover("b") },
			procs: func(s *setup) []*proc {
				return []*proc{s.writer("W", one("m1", "a"), one("m2", "b")), pruner("P")}
			},
		},
		"same name": {
			title: "two writers for one name, which is forgotten, and a pruner", suspicions: 1,
			before: func(s *setup) { s.leftover("a") },
			procs: func(s *setup) []*proc {
				return []*proc{s.writer("W1", one("m1", "a")), s.writer("W2", one("m1", "b")), pruner("P"), forgetter("G", "m1")}
			},
		},
		"again": {
			title: "a repack, its checkpoint is forgotten and copied there again, and a pruner", suspicions: 1, before: m0,
			procs: func(s *setup) []*proc {
				return []*proc{s.repacker("R", "m0", "c"), s.again("W", "m0", "a"), pruner("P"), forgetter("F", "m0")}
			},
		},
		"increment": {
			title: "a writer that builds on a checkpoint, which is forgotten, and a pruner", suspicions: 1, before: m0,
			procs: func(s *setup) []*proc {
				return []*proc{s.increment("W", "m1", "m0"), pruner("P"), forgetter("F", "m0")}
			},
		},
	}
}

func (w *world) String() string {
	if len(w.without) == 0 {
		return w.title
	}
	return fmt.Sprintf("%s, without %v", w.title, w.without)
}
