// SPDX-License-Identifier: Apache-2.0

package repair

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/check"
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
	for _, step := range []func(context.Context) error{e.fetchObjects, e.writeMaps, e.mendManifests, e.revise, e.index} {
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
	rank := func(o object) int {
		if prefix, _, _ := archive.ParseKey(o.key); prefix == archive.PackPrefix {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(e.fetch, func(a, b object) int { return rank(a) - rank(b) })
	for i, o := range e.fetch {
		e.progress("fetching objects", i, len(e.fetch))
		stored, err := archive.CopyObject(ctx, o.from.Store, e.repo.Store, o.key, o.ref, e.o.TempDir)
		if err != nil {
			return err
		}
		if stored {
			e.result.Fetched++
			e.result.Bytes += o.ref.Length
		}
	}
	return nil
}

// mendManifests stores manifests in the place of damaged ones.
func (e *execution) mendManifests(ctx context.Context) error {
	for _, m := range e.mend {
		if err := e.repo.MendManifest(ctx, m.manifest); err != nil {
			return err
		}
		e.result.Manifests++
	}
	return nil
}

// revise replaces the manifests that name maps which were written anew.
func (e *execution) revise(ctx context.Context) error {
	domains, err := e.repo.Domains(ctx)
	if err != nil {
		return err
	}
	if len(e.fresh)+len(e.whole)+len(e.regain) == 0 {
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
	}
	return nil
}

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
		if r, ok := e.regain[id]; ok && d.LostBytes() > r.disk.LostBytes() {
			d.Maps, d.Lost, changed = r.disk.Maps, r.disk.Lost, true
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
	for _, ref := range e.indexes {
		if slices.ContainsFunc(made, func(r archive.Ref) bool { return r.Name == ref.Name }) {
			continue
		}
		if err := e.repo.Store.Delete(ctx, archive.IndexKey(ref.Name)); err != nil {
			return fmt.Errorf("remove a damaged index: %w", err)
		}
	}
	return nil
}

func (e *execution) indexPacks(ctx context.Context) ([]archive.Ref, error) {
	if len(e.unlisted) == 0 {
		return nil, nil
	}
	w, err := archive.NewIndexWriter(e.repo.Store, time.Now().Unix(), e.o.TempDir)
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
