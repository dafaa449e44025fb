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
	"github.com/imgbackup/imgbackup/chain/forget"
	"github.com/imgbackup/imgbackup/chain/prune"
	"github.com/imgbackup/imgbackup/chain/transfer"
	"github.com/imgbackup/imgbackup/internal/protocol"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/view"
)

// world is some processes, and what stands in the repository when they begin.
type world struct {
	title   string
	without map[protocol.Rule]bool
	before  func(s *setup)
	procs   func(s *setup) []*process
	after   func(x *explorer, s *state) error // nil: when it is over there is nothing to ask

	rotates bool // keys may be rotated
	signed  bool // all is signed, and some have only a host's key

	deletesNone bool // nothing is ever deleted

	small bool     // it is exhausted
	large bool     // it is, too, but only in a soak
	way   []string // how it begins: see explorer.led

	crashes    int // that there may be
	suspicions int // live processes that may be taken for dead
	lates      int // requests that may be sent twice, of which the first arrives late
}

// setup is the repository before anybody begins.
type setup struct {
	t    *testing.T
	repo *chain.Repository
	pool *pool
	made map[string]*chain.Manifest
	disk map[string][]archive.MapRef // of what was stored, its maps
}

func newSetup(t *testing.T) *setup {
	repo, err := chain.Init(t.Context(), objstore.NewMem(), chain.InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return &setup{t: t, repo: repo, pool: newPool(), made: make(map[string]*chain.Manifest), disk: make(map[string][]archive.MapRef)}
}

// objects are all that stand there.
func (s *setup) objects(t *testing.T) (all objects) {
	for info, err := range s.repo.Store.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		data, err := objstore.ReadAll(t.Context(), s.repo.Store, info.Key, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, object{info.Key, s.pool.of(data)})
	}
	return all
}

// blockSize is that of the blocks of which disks are made, bytes: smaller ones are not
// deduplicated.
const blockSize = 16 << 10

// content is that of a disk, whose blocks are named by one letter each.
func content(what string) []byte {
	var data []byte
	for _, letter := range what {
		data = append(data, bytes.Repeat([]byte(string(letter)), blockSize)...)
	}
	return data
}

// archived stores a disk as a backup does, and returns its maps.
func archived(ctx context.Context, s objstore.Store, what string) ([]archive.MapRef, error) {
	w, err := archive.NewWriter(ctx, s, archive.WriterOptions{Workers: 1, PackSize: 64 << 10, SkipVerify: true})
	if err != nil {
		return nil, err
	}
	defer w.Abort() // does nothing after Finish
	data := content(what)
	m := w.NewMap("vda", int64(len(data)), true)
	for at := int64(0); at < int64(len(data)); at += blockSize {
		err := m.Add(ctx, at, blockSize, func(context.Context, []byte) ([]archive.Piece, error) {
			return []archive.Piece{{Offset: at, Length: blockSize, Data: data[at : at+blockSize]}}, nil
		})
		if err != nil {
			return nil, err
		}
	}
	maps, _, err := w.Finish(ctx)
	return maps, err
}

func manifest(name string, size int64, maps []archive.MapRef) *chain.Manifest {
	return &chain.Manifest{
		Kind: chain.KindArchive, Domain: "web", Host: chain.Host{Name: "h"}, Checkpoint: name, UUID: chain.NewUUID(), Sequence: 1,
		Created: time.Unix(1e9, 0).UTC(), Locking: chain.LockingNone, Requested: chain.ModeAuto,
		Disks: []chain.Disk{{
			Name: "vda", Source: chain.Source{Path: "/a", Format: "raw"}, Size: size,
			Mode: chain.ModeFull, Detection: chain.DetectionNone, NoBitmapReason: "raw", Maps: maps,
		}},
	}
}

// leftover stores a disk that no checkpoint needs.
func (s *setup) leftover(what string) []archive.MapRef {
	maps, err := archived(s.t.Context(), s.repo.Store, what)
	if err != nil {
		s.t.Fatal(err)
	}
	return maps
}

// checkpoint makes one before anybody begins.
func (s *setup) checkpoint(name, what string) {
	m := manifest(name, int64(len(content(what))), s.leftover(what))
	if err := s.repo.Commit(s.t.Context(), m); err != nil {
		s.t.Fatal(err)
	}
	s.made[name] = m
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
	if errors.As(err, new(*chain.RotatingError)) {
		return true
	}
	return errors.Is(err, errRotated) || errors.Is(err, errCrashed) || errors.Is(err, prune.ErrLostMark) || errors.Is(err, chain.ErrMarkChanged)
}

// writer makes checkpoints one after the other, each of its content, as a backup does,
// or a copy of several.
func writer(name string, commits ...[2]string) *process {
	return &process{name: name, crashes: true, do: func(ctx context.Context, a *actor) (err error) {
		var hold *chain.Hold
		if len(commits) == 1 {
			hold, err = a.repo.HoldFor(ctx, name, "web", commits[0][0])
		} else {
			hold, err = a.repo.Hold(ctx, name)
		}
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, hold.Release(ctx)) }()
		for _, c := range commits {
			maps, err := archived(ctx, hold.Store(), c[1])
			if err != nil {
				return err
			}
			if err := hold.Commit(ctx, manifest(c[0], int64(len(content(c[1]))), maps)); err != nil {
				return err
			}
		}
		return nil
	}}
}

// host is a process with a host's key.
func host(p *process) *process {
	p.host = true
	return p
}

// rotator rotates the keys: what stands then is recorded, and nothing else counts after it.
func rotator(name string) *process {
	return &process{name: name, every: true, do: func(ctx context.Context, a *actor) error {
		err := a.repo.Rotating(ctx, func(ctx context.Context) error {
			stands := "stand:"
			for info, err := range a.repo.Store.List(ctx, "domains/") {
				if err != nil {
					return err
				}
				stands += " " + info.Key
			}
			return a.repo.Store.Put(ctx, newerKeys, bytes.NewReader([]byte(stands)), objstore.PutOptions{})
		})
		if errors.As(err, new(*chain.WritersError)) || errors.As(err, new(*chain.RotatingError)) {
			return nil
		}
		return err
	}}
}

// onlyWhatStood demands that nothing was committed beside a rotation.
func onlyWhatStood(_ *explorer, s *state) error {
	keys := s.objects.get(newerKeys)
	if keys == nil {
		return nil
	}
	for _, o := range s.objects.under("domains/") {
		if !bytes.Contains(keys.data, []byte(o.key)) {
			return fmt.Errorf("%s was committed with old keys, and did not stand when they were rotated", o.key)
		}
	}
	return nil
}

// again makes the same checkpoint once more, byte by byte, as a copy does from another
// repository.
func (s *setup) again(name, checkpoint, what string) *process {
	return &process{name: name, crashes: true, do: func(ctx context.Context, a *actor) (err error) {
		hold, err := a.repo.Hold(ctx, name)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, hold.Release(ctx)) }()
		m := *s.made[checkpoint]
		m.OverVoid = ""
		if _, err := archived(ctx, hold.Store(), what); err != nil {
			return err
		}
		return hold.Commit(ctx, &m)
	}}
}

// increment makes a checkpoint that builds on another: it names what that has, and
// stores nothing of it.
func increment(name, checkpoint, on string) *process {
	return &process{name: name, crashes: true, do: func(ctx context.Context, a *actor) (err error) {
		base, err := a.repo.Manifest(ctx, "web", on) // as the plan of a backup does
		if err != nil {
			return nil // there is nothing to build on
		}
		hold, err := a.repo.HoldFor(ctx, name, "web", checkpoint)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, hold.Release(ctx)) }()
		if err := errors.Join(hold.CheckStands(ctx, base), hold.RelyOn(ctx, base)); err != nil {
			return err
		}
		return hold.Commit(ctx, manifest(checkpoint, base.Disks[0].Size, base.Disks[0].Maps))
	}}
}

// repacker gives a checkpoint other objects.
func repacker(name, checkpoint, what string) *process {
	return &process{name: name, crashes: true, do: func(ctx context.Context, a *actor) (err error) {
		w, err := a.repo.BeginRepack(ctx)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, w.End(ctx)) }()
		maps, err := archived(ctx, a.repo.Store, what)
		if err != nil {
			return err
		}
		m, err := a.repo.Manifest(ctx, "web", checkpoint)
		if err != nil {
			return nil
		}
		m.Disks = append([]chain.Disk(nil), m.Disks...)
		m.Disks[0].Maps = maps
		return w.Revise(ctx, m)
	}}
}

// pruner prunes, and once more if it had to leave something.
func pruner(name string) *process { return prunes(name, 2) }

// prunes prunes up to so many times, until nothing is left waiting.
func prunes(name string, times int) *process {
	return &process{name: name, crashes: true, do: func(ctx context.Context, a *actor) error {
		for n := range times {
			result, err := prune.Run(ctx, a.repo, prune.Options{MaxUnused: prune.Limit{Unlimited: true}})
			if err != nil || len(result.Waiting) == 0 || n+1 == times {
				return err
			}
			if err := protocol.Pause(ctx, time.Second); err != nil {
				return err
			}
		}
		return nil
	}}
}

// forgetter forgets a checkpoint, as the command does.
func forgetter(name, checkpoint string) *process {
	return &process{name: name, pins: true, do: func(ctx context.Context, a *actor) error {
		plan, err := forget.Make(ctx, a.repo, forget.Request{Domains: []string{"web"}, Checkpoints: []string{checkpoint}})
		if errors.Is(err, chain.ErrNoCheckpoint) || errors.As(err, new(*chain.NoDomainError)) {
			return nil
		}
		if err != nil {
			return err
		}
		return plan.Run(ctx, a.repo, func(*chain.Manifest) {})
	}}
}

// damageTold is a reader that calls something damaged which is not.
type damageTold struct{ error }

// reader reads a checkpoint as serve does, while it is repacked or forgotten.
func reader(name, checkpoint, what string) *process {
	return &process{name: name, every: true, do: func(ctx context.Context, a *actor) error {
		m, err := a.repo.Manifest(ctx, "web", checkpoint)
		if errors.Is(err, chain.ErrNoCheckpoint) {
			return nil
		}
		if err != nil {
			return damageTold{err}
		}
		c, err := view.Open(ctx, a.repo, m, nil, view.Options{Cache: 1 << 20, NoAhead: true})
		if err == nil {
			defer c.Close()
			got := make([]byte, c.Disks[0].Size())
			if err = c.Disks[0].ReadAt(ctx, got, 0); err == nil && !bytes.Equal(got, content(what)) {
				err = errors.New("it reads otherwise")
			}
		}
		if err != nil && !errors.As(err, new(*chain.GoneError)) {
			return damageTold{err}
		}
		return nil
	}}
}

// copier copies a checkpoint to another repository.
func copier(name, checkpoint string) *process {
	return &process{name: name, every: true, do: func(ctx context.Context, a *actor) error {
		to, err := chain.Init(ctx, objstore.NewMem(), chain.InitOptions{})
		if err != nil {
			return err
		}
		_, err = transfer.Copy(ctx, a.repo, to, transfer.Options{Domains: []string{"web"}, Checkpoints: []string{checkpoint}})
		if err == nil || errors.As(err, new(*chain.GoneError)) || errors.Is(err, chain.ErrNoCheckpoint) || errors.As(err, new(*chain.NoDomainError)) {
			return nil
		}
		return damageTold{err}
	}}
}

func one(name, what string) [2]string { return [2]string{name, what} }

// worlds are those of the model, with real code.
func worlds() map[string]*world {
	m0 := func(s *setup) { s.checkpoint("m0", "a") }
	leftover := func(s *setup) { s.leftover("a") }
	beside := func(times int) func(*setup) []*process {
		return func(*setup) []*process { return []*process{writer("W", one("m1", "a")), prunes("P", times)} }
	}
	return map[string]*world{
		"forgotten": {
			title: "a writer, a pruner, a forgotten checkpoint", suspicions: 1, before: m0,
			procs: func(s *setup) []*process {
				return []*process{writer("W", one("m1", "a")), pruner("P"), forgetter("F", "m0")}
			},
		},
		"two writers": {
			title: "two writers, a pruner, a forgotten checkpoint", before: m0,
			procs: func(s *setup) []*process {
				return []*process{writer("W1", one("m1", "a")), writer("W2", one("m2", "a")), pruner("P"), forgetter("F", "m0")}
			},
		},
		"leftovers": {
			large: true, title: "a pruner, a writer that needs leftovers, a crash, and one that is taken for dead", crashes: 1, suspicions: 1,
			before: leftover, procs: beside(2),
		},
		"leftovers, crash":  {small: true, title: "a pruner, a writer that needs leftovers, a crash", crashes: 1, before: leftover, procs: beside(1)},
		"leftovers, broken": {small: true, title: "a pruner, a writer that needs leftovers, one that is taken for dead", suspicions: 1, before: leftover, procs: beside(1)},
		"two pruners": {
			title: "a writer, two pruners, leftovers", suspicions: 2,
			before: func(s *setup) { s.leftover("a"); s.leftover("b") },
			procs: func(s *setup) []*process {
				return []*process{writer("W", one("m1", "a")), pruner("P1"), pruner("P2")}
			},
		},
		"repack": {
			title: "a repack, a writer, a pruner, a crash", crashes: 1, suspicions: 1, before: m0,
			procs: func(s *setup) []*process {
				return []*process{repacker("R", "m0", "c"), writer("W", one("m1", "a")), pruner("P")}
			},
		},
		"copy": {
			title: "a copy: two commits under one lease, a pruner", suspicions: 1,
			before: func(s *setup) { s.leftover("a"); s.leftover("b") },
			procs: func(s *setup) []*process {
				return []*process{writer("W", one("m1", "a"), one("m2", "b")), pruner("P")}
			},
		},
		"same name": {
			title: "two writers for one name, which is forgotten, and a pruner", suspicions: 1,
			before: func(s *setup) { s.leftover("a") },
			procs: func(s *setup) []*process {
				return []*process{writer("W1", one("m1", "a")), writer("W2", one("m1", "b")), pruner("P"), forgetter("G", "m1")}
			},
		},
		"again": {
			title: "a repack, its checkpoint is forgotten and copied there again, and a pruner", suspicions: 1, before: m0,
			procs: func(s *setup) []*process {
				return []*process{repacker("R", "m0", "c"), s.again("W", "m0", "a"), pruner("P"), forgetter("F", "m0")}
			},
		},
		"increment": {
			title: "a writer that builds on a checkpoint, which is forgotten, and a pruner", suspicions: 1, before: m0,
			procs: func(s *setup) []*process {
				return []*process{increment("W", "m1", "m0"), pruner("P"), forgetter("F", "m0")}
			},
		},
		"forgotten reader": {
			title: "a reader, of what is forgotten, and a pruner", small: true, before: m0,
			procs: func(s *setup) []*process {
				return []*process{reader("R", "m0", "a"), pruner("P"), forgetter("F", "m0")}
			},
		},
		"late": {
			title: "a request to commit that is repeated arrives late, when the checkpoint is forgotten and pruned", lates: 1,
			before: func(*setup) {},
			procs: func(s *setup) []*process {
				return []*process{writer("W", one("m1", "a")), pruner("P"), forgetter("F", "m1")}
			},
		},
		"late revision": {
			title: "a request to revise that is repeated arrives late, when its checkpoint was forgotten, pruned and copied there again", lates: 1, before: m0,
			procs: func(s *setup) []*process {
				return []*process{repacker("R", "m0", "c"), s.again("W", "m0", "a"), pruner("P"), forgetter("F", "m0")}
			},
		},
		"late lease": {
			title: "a repeated request to put a lease arrives late, when it announces the next commit", lates: 1, suspicions: 1,
			before: func(s *setup) { s.leftover("a"); s.leftover("b") },
			procs: func(s *setup) []*process {
				return []*process{writer("W", one("m1", "a"), one("m2", "b")), pruner("P")}
			},
		},
		"name again": {
			title: "a checkpoint is forgotten by one that is taken for dead, and its name is used again", suspicions: 1, before: m0,
			procs: func(s *setup) []*process {
				return []*process{writer("W", one("m0", "b")), forgetter("F", "m0"), pruner("P")}
			},
		},
		"reader": {
			title: "a reader, of what is repacked and forgotten, and a pruner", before: m0,
			procs: func(s *setup) []*process {
				return []*process{reader("R", "m0", "a"), repacker("W", "m0", "a"), pruner("P"), forgetter("F", "m0")}
			},
		},
		"host": {
			title: "a host that needs leftovers, and a pruner", signed: true, small: true, before: leftover,
			procs: func(*setup) []*process { return []*process{host(writer("W", one("m1", "a"))), prunes("P", 1)} },
		},
		"host, crash": {
			title: "a host that needs leftovers, two pruners, a crash", signed: true, crashes: 1, suspicions: 1, before: leftover,
			procs: func(*setup) []*process {
				return []*process{host(writer("W", one("m1", "a"))), prunes("P1", 1), prunes("P2", 1)}
			},
		},
		"hosts": {
			title: "two hosts, a pruner, a forgotten checkpoint", signed: true, before: m0,
			procs: func(*setup) []*process {
				return []*process{host(writer("W1", one("m1", "a"))), host(writer("W2", one("m2", "a"))), pruner("P"), forgetter("F", "m0")}
			},
		},
		"host, increment": {
			title: "a host that builds on a checkpoint, which is forgotten, and a pruner", signed: true, suspicions: 1, before: m0,
			procs: func(*setup) []*process {
				return []*process{host(increment("W", "m1", "m0")), pruner("P"), forgetter("F", "m0")}
			},
		},
		"rotation": {
			title: "a host, and keys that are rotated", signed: true, rotates: true, small: true, before: func(*setup) {}, after: onlyWhatStood, deletesNone: true,
			procs: func(*setup) []*process {
				return []*process{host(writer("W", one("m1", "a"))), rotator("R")}
			},
		},
		"host, late": {
			title: "a host's request to commit that is repeated arrives late, when the checkpoint is forgotten and pruned", signed: true, lates: 1, suspicions: 1,
			before: func(*setup) {},
			procs: func(*setup) []*process {
				return []*process{host(writer("W", one("m1", "a"))), pruner("P"), forgetter("F", "m1")}
			},
		},
		"copier": {
			small: true, title: "a copy of what is forgotten, and a pruner", before: m0,
			procs: func(s *setup) []*process {
				return []*process{copier("C", "m0"), pruner("P"), forgetter("F", "m0")}
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
