// SPDX-License-Identifier: Apache-2.0

package repair

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/check"
	"github.com/imgbackup/imgbackup/objstore"
)

// Result is what a repair has done.
type Result struct {
	Fetched   int   `json:"fetched"`   // whole objects
	Bytes     int64 `json:"bytes"`     // in them
	Packs     int64 `json:"packs"`     // new ones, with chunks of packs that could not be had whole
	Maps      int   `json:"maps"`      // new ones
	Manifests int   `json:"manifests"` // that were replaced by their next revision, or fetched
	Indexes   int   `json:"indexes"`   // new ones
}

// Execute carries out the plan, once. It may be cut off at any moment: what was repaired
// until then is, and another repair does the rest.
func (p *Plan) Execute(ctx context.Context) (r *Result, err error) {
	w, err := p.repo.BeginRepair(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(w.Explain(err), w.End(ctx)) }()
	e := &execution{Plan: p, w: w, result: &Result{}}
	for _, step := range []func(context.Context) error{e.fetchObjects, e.writeMaps, e.mendManifests, e.mendDrills, e.revise, e.index, e.raiseAll} {
		if err := step(w.Context()); err != nil {
			return e.result, err
		}
	}
	return e.result, nil
}

// execution is a plan that is carried out.
type execution struct {
	*Plan
	w      *chain.Repacking
	result *Result

	fresh map[archive.MapRef]archive.MapRef // by the map whose place it takes
	whole map[diskOf]archive.MapRef         // of disks that get one new map
}

func (e *execution) progress(phase string, done, total int) {
	if e.o.Progress != nil {
		e.o.Progress(check.Event{Phase: phase, Done: int64(done), Total: int64(total)})
	}
}

// fetchObjects fetches whole objects, packs first: what names them comes after them.
func (e *execution) fetchObjects(ctx context.Context) error {
	isPack := func(o object) bool {
		prefix, _, _ := archive.ParseKey(o.key)
		return prefix == archive.PackPrefix
	}
	var packs, others []object
	for _, o := range e.fetch {
		if isPack(o) {
			packs = append(packs, o)
		} else {
			others = append(others, o)
		}
	}
	if err := e.fetchEach(ctx, packs, 0); err != nil {
		return err
	}
	return e.fetchEach(ctx, others, len(packs))
}

// fetchEach fetches objects, as many at once as their stores are worth; before is how many
// were fetched.
func (e *execution) fetchEach(ctx context.Context, objects []object, before int) error {
	atOnce := max(1, objstore.Connections(e.repo.Store))
	for _, o := range objects {
		atOnce = max(atOnce, objstore.Connections(o.from.Store))
	}
	var mu sync.Mutex
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	done := before
	for _, o := range objects {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			stored, err := archive.CopyObject(gctx, o.from.Store, e.repo.Store, o.key, o.ref, e.o.TempDir)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			if stored {
				e.result.Fetched++
				e.result.Bytes += o.ref.Length
			}
			done++
			e.progress("fetching objects", done, len(e.fetch))
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// mendManifests stores manifests in the place of damaged ones.
func (e *execution) mendManifests(ctx context.Context) error {
	for _, v := range e.uncover {
		if err := e.repo.Uncover(ctx, v); err != nil {
			return err
		}
		e.result.Manifests++
	}
	for _, m := range e.mend {
		if err := e.repo.MendManifest(ctx, m.manifest); err != nil {
			return err
		}
		e.result.Manifests++
	}
	return nil
}

// raiseAll puts what the configuration and the keys are on top again: last, since not all who repair may.
func (e *execution) raiseAll(ctx context.Context) error {
	for _, l := range e.raise {
		if err := e.repo.Raise(ctx, l); err != nil {
			return fmt.Errorf("put version %s of %s on top again: %w", l.ID, l.Key, err)
		}
	}
	return nil
}

// revise replaces the manifests that name maps which were written anew.
func (e *execution) revise(ctx context.Context) error {
	domains, err := e.repo.Domains(ctx)
	if err != nil {
		return err
	}
	if len(e.fresh)+len(e.whole)+len(e.regain)+len(e.drop) == 0 {
		return nil
	}
	for _, domain := range domains {
		names, err := e.repo.Checkpoints(ctx, domain)
		if err != nil {
			return err
		}
		for i, name := range names {
			e.progress("rewriting checkpoints of "+domain, i, len(names))
			if err := e.reviseUntilDone(ctx, domain, name); err != nil {
				return err
			}
		}
		if err := e.dropForgotten(ctx, domain); err != nil {
			return err
		}
	}
	return nil
}

// dropForgotten takes records that are gone out of what forgotten checkpoints left. A list
// that is damaged itself is told of, and left.
func (e *execution) dropForgotten(ctx context.Context, domain string) error {
	if len(e.drop) == 0 {
		return nil
	}
	_, err := e.repo.LoseForgotten(ctx, domain, e.isDropped)
	if archive.IsDamage(err) {
		return nil
	}
	return err
}

func (e *execution) isDropped(key string) bool { return e.drop[key] }

func (e *execution) reviseUntilDone(ctx context.Context, domain, name string) error {
	for {
		m, err := e.repo.Manifest(ctx, domain, name)
		if archive.IsDamage(err) || errors.Is(err, chain.ErrNoCheckpoint) {
			return nil // left, or forgotten meanwhile
		}
		if err != nil {
			return err
		}
		if !e.change(m) {
			return nil
		}
		err = e.w.Revise(ctx, m)
		if errors.As(err, new(*chain.RevisedError)) {
			continue // by somebody else, just now
		}
		if err == nil {
			e.result.Manifests++
		}
		if errors.Is(err, chain.ErrNoCheckpoint) {
			return nil
		}
		return err
	}
}

// change makes the next revision of a manifest, and reports whether there is one.
func (e *execution) change(m *chain.Manifest) bool {
	changed := false
	for i := range m.Disks {
		d := &m.Disks[i]
		id := diskOf{m.Domain, m.Checkpoint, d.Name}
		changed = d.LoseRecords(e.isDropped) || changed
		if r, ok := e.regain[id]; ok {
			// Who else has given it other maps since may have got back more.
			isAsPlanned := slices.Equal(d.Maps, r.before) && !slices.Equal(d.Maps, r.disk.Maps)
			if isAsPlanned || isLess(r.disk.Lost, d.Lost) {
				d.Maps, d.Lost, changed = r.disk.Maps, r.disk.Lost, true
			}
			continue
		}
		is := false
		if ref, ok := e.whole[id]; ok && slices.ContainsFunc(d.Maps, func(r archive.MapRef) bool { return e.lostMaps[r] }) {
			d.Maps, is = []archive.MapRef{ref}, true
		} else {
			maps := slices.Clone(d.Maps)
			for k := range maps {
				if ref, ok := e.fresh[maps[k]]; ok {
					maps[k], is = ref, true
				}
			}
			d.Maps = maps
		}
		if !is {
			continue
		}
		changed = true
		if set := e.lost[id]; set != nil {
			d.Lost = chain.Losses(append(slices.Clone(d.Lost), set.All()...), d.Size)
		}
	}
	return changed
}

// index stores an index of what none lists, and removes those that are damaged, unless it has
// just been made again.
func (e *execution) index(ctx context.Context) error {
	made, err := e.indexPacks(ctx)
	if err != nil {
		return err
	}
	for _, key := range e.indexes {
		if slices.Contains(made, key) {
			continue
		}
		if err := e.repo.Store.Delete(ctx, key); err != nil {
			return fmt.Errorf("remove a damaged index: %w", err)
		}
	}
	return nil
}

func (e *execution) indexPacks(ctx context.Context) ([]string, error) {
	if len(e.unlisted) == 0 {
		return nil, nil
	}
	own, err := e.repo.Indexing()
	if err != nil {
		return nil, err
	}
	w, err := archive.NewIndexWriter(e.repo.Store, time.Now().Unix(), e.o.TempDir, own)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	for i, pack := range e.unlisted {
		e.progress("indexing packs", i, len(e.unlisted))
		chunks, err := archive.ReadPackTable(ctx, e.repo.Store, pack)
		if archive.IsDamage(err) {
			continue
		}
		if err == nil {
			err = w.Add(ctx, pack, chunks)
		}
		if err != nil {
			return nil, err
		}
	}
	err = w.Finish(ctx)
	e.result.Indexes = len(w.Stored())
	return w.Stored(), err
}
