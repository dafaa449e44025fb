// SPDX-License-Identifier: Apache-2.0

package repair

import (
	"context"
	"errors"
	"slices"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/check"
	"github.com/imgbackup/imgbackup/objstore"
)

// The part of a plan that is about whole objects: what another repository has under the
// same digest is the same.

// readManifests reads the manifests that are sound.
func (l *planner) readManifests(ctx context.Context) error {
	domains, err := l.repo.Domains(ctx)
	if err != nil {
		return err
	}
	for _, d := range domains {
		ms, _, err := l.repo.Manifests(ctx, d) // what is damaged is among the findings
		if err != nil {
			return err
		}
		l.manifests = append(l.manifests, ms...)
	}
	for _, m := range l.manifests {
		l.refer(m)
	}
	return nil
}

func (l *planner) refer(m *chain.Manifest) {
	for ref := range m.References() {
		l.refs[ref.Key] = ref.Object
	}
}

// mendManifests looks for damaged manifests in other repositories.
func (l *planner) mendManifests(ctx context.Context) error {
	covered, err := l.covered(ctx)
	if err != nil {
		return err
	}
	for i := range l.findings {
		f := &l.findings[i]
		k := chain.ParseKey(f.Object)
		if k.Kind != chain.KeyManifest {
			continue
		}
		if v, ok := covered[f.Object]; ok {
			l.takeUncovered(v)
			l.Actions = append(l.Actions, Action{Object: f.Object, Kind: f.Kind, Wrong: f.What, Do: Uncover, From: earlier})
			continue
		}
		a := Action{Object: f.Object, Kind: f.Kind, Wrong: f.What, Do: Leave, Why: "no other repository has it: the checkpoint can only be forgotten, by removing this object"}
		for _, from := range l.o.From {
			m, err := from.Repo.Manifest(ctx, k.Domain, k.Name)
			if archive.IsDamage(err) || errors.Is(err, chain.ErrNoCheckpoint) {
				continue
			}
			if err != nil {
				return err
			}
			if err := l.takeNeeds(ctx, m, from); err != nil {
				if archive.IsDamage(err) {
					continue
				}
				return err
			}
			a.Do, a.From, a.Why = Fetch, from.Name, ""
			l.mend = append(l.mend, mended{m, from.Repo})
			l.manifests = append(l.manifests, m)
			l.refer(m)
			break
		}
		l.Actions = append(l.Actions, a)
	}
	return nil
}

// covered are the manifests that lie below something else, by key, if any is found wrong.
func (l *planner) covered(ctx context.Context) (map[string]chain.Revision, error) {
	wrong := slices.ContainsFunc(l.findings, func(f check.Finding) bool { return chain.ParseKey(f.Object).Kind == chain.KeyManifest })
	if !wrong || !l.under {
		return nil, nil
	}
	all, err := l.repo.Covered(ctx, "")
	covered := make(map[string]chain.Revision)
	for _, v := range all {
		covered[v.Key] = v
	}
	return covered, err
}

// takeUncovered plans to put a manifest on top again. What is on top now may have been taken for it.
func (l *planner) takeUncovered(v chain.Revision) {
	l.uncover = append(l.uncover, v)
	l.manifests = slices.DeleteFunc(l.manifests, func(m *chain.Manifest) bool { return m.Domain == v.Domain && m.Checkpoint == v.Checkpoint })
	if v.Manifest != nil {
		l.manifests = append(l.manifests, v.Manifest)
		l.refer(v.Manifest)
	}
}

// takeNeeds has all fetched that a checkpoint of another repository needs and that is not
// there.
func (l *planner) takeNeeds(ctx context.Context, m *chain.Manifest, from Source) error {
	needs, err := from.Repo.Needs(ctx, m, nil)
	if err != nil {
		return err
	}
	for _, o := range needs {
		stands, err := archive.Stands(ctx, l.repo.Store, o.Key, o.Ref.Length)
		if err != nil {
			return err
		}
		l.refs[o.Key] = o.Ref
		damaged := slices.ContainsFunc(l.findings, func(f check.Finding) bool { return f.Object == o.Key })
		if stands && !damaged {
			continue
		}
		if err := archive.VerifyObject(ctx, from.Repo.Store, o.Key, o.Ref.Length, true); err != nil {
			return err
		}
		l.take(o.Key, o.Ref, from.Repo)
	}
	return nil
}

// take plans to fetch an object, once.
func (l *planner) take(key string, ref archive.Ref, from *chain.Repository) {
	if l.over.from[key] == nil {
		l.over.from[key] = from
		l.fetch = append(l.fetch, object{key, ref, from})
	}
}

// fetchWhole looks for damaged and missing objects in other repositories: packs last, since
// only maps tell which of them are needed.
func (l *planner) fetchWhole(ctx context.Context) error {
	var packs []check.Finding
	var maps []archive.MapRef // that could not be read
	for _, f := range l.findings {
		switch prefix, _, _ := archive.ParseKey(f.Object); prefix {
		case archive.PackPrefix:
			packs = append(packs, f)
			continue
		case archive.MapPrefix:
			for ref := range l.allMaps() {
				if archive.MapKey(ref.Name) == f.Object {
					maps = append(maps, ref)
				}
			}
		}
		if err := l.fetchOne(ctx, f); err != nil {
			return err
		}
	}
	missing, err := l.referPacks(ctx, len(packs) > 0, maps)
	if err != nil {
		return err
	}
	for _, f := range append(packs, missing...) {
		if err := l.fetchOne(ctx, f); err != nil {
			return err
		}
	}
	l.badPacks = make(map[archive.Ref]*Action)
	for i := range l.Actions {
		if a := &l.Actions[i]; a.Kind == check.KindPack && a.Do == Rewrite {
			l.badPacks[a.ref] = a
		}
	}
	return nil
}

// fetchOne looks for one object.
func (l *planner) fetchOne(ctx context.Context, f check.Finding) error {
	prefix, name, isData := archive.ParseKey(f.Object)
	_, isIndex := archive.IsIndex(prefix)
	a := Action{Object: f.Object, Kind: f.Kind, Wrong: f.What, Do: Leave}
	switch {
	case chain.ParseKey(f.Object).Kind == chain.KeyManifest:
		return nil // dealt with
	case isIndex:
		l.indexes = append(l.indexes, f.Object)
		a.Do = Rebuild
		l.Actions = append(l.Actions, a)
		return nil
	case chain.ParseKey(f.Object).Kind == chain.KeyForgotten:
		a.Why = "what forgotten checkpoints saw is lost: make a backup with --mode full, and remove this object; until then no bitmap of the domain is believed"
		l.Actions = append(l.Actions, a)
		return nil
	case f.Kind == check.KindDrill:
		return l.fetchDrill(ctx, a)
	case chain.ParseKey(f.Object).Kind == chain.KeyMark:
		a.Why = "it says what a prune deletes; when no prune is at work any more, on any host, imgbackup prune --take-over puts another in its place"
		l.Actions = append(l.Actions, a)
		return nil
	case l.lowered(f.Object):
		a.Do, a.From = Uncover, earlier
		l.Actions = append(l.Actions, a)
		return nil
	case f.Kind == check.KindConfig:
		a.Why = "it opens the repository for its member: put it back from the key kit, or have an admin remove that key, and add another one"
		l.Actions = append(l.Actions, a)
		return nil
	case !isData:
		a.Why = "it says who is at work; imgbackup leases tells what to do"
		l.Actions = append(l.Actions, a)
		return nil
	}
	ref, needed := l.refs[f.Object]
	if !needed {
		ref = archive.Ref{Name: name, Length: -1}
		a.Why = "no checkpoint needs it: a prune removes it"
	}
	from, ref, err := l.whoHas(ctx, f.Object, ref)
	switch {
	case err != nil:
		return err
	case from != nil:
		a.Do, a.From, a.Why = Fetch, from.Name, ""
		l.take(f.Object, ref, from.Repo)
	case !needed:
	case prefix == archive.MapPrefix:
		l.doWithoutMap(ctx, &a, ref)
	case prefix == archive.PackPrefix:
		a.Do, a.ref = Rewrite, ref
	case prefix == archive.BitmapPrefix || prefix == archive.ClustersPrefix:
		a.Do = Drop
		l.drop[f.Object] = true
	default:
		a.Why = "no other repository has it. The disks restore without it (restore --to). If the file is what it was the next backup brings it back; else forgetting the checkpoints that name it takes it out"
	}
	l.Actions = append(l.Actions, a)
	return nil
}

// lowered plans to put what the configuration and the keys are on top again, and reports whether something
// lies on it.
func (l *planner) lowered(key string) bool {
	i := slices.IndexFunc(l.repo.Lowered, func(low chain.Lowered) bool { return low.Key == key })
	if i >= 0 {
		l.raise = append(l.raise, l.repo.Lowered[i])
	}
	return i >= 0
}

// doWithoutMap plans to do without a map.
func (l *planner) doWithoutMap(ctx context.Context, a *Action, ref archive.Ref) {
	if archive.VerifyObject(ctx, l.repo.Store, a.Object, ref.Length, true) == nil {
		a.Why = "its bytes are right, and say what is not so: whoever wrote it was wrong"
		return
	}
	a.Do = Rewrite
	for ref := range l.allMaps() {
		if archive.MapKey(ref.Name) == a.Object {
			l.lostMaps[ref] = true
		}
	}
}

// referPacks notes the lengths of packs, as maps name them, if all is set, and returns those
// that are named by maps which could not be read and are missing.
func (l *planner) referPacks(ctx context.Context, all bool, unread []archive.MapRef) ([]check.Finding, error) {
	maps := make(map[archive.MapRef]bool)
	if all {
		maps = l.allMaps()
	}
	for _, ref := range unread {
		maps[ref] = true
	}
	var missing []check.Finding
	told := make(map[string]bool)
	for i := range l.findings {
		told[l.findings[i].Object] = true
	}
	err := l.eachMap(ctx, l.overlaid(), maps, func(m *archive.Map) error {
		for _, p := range m.Packs() {
			key := archive.PackKey(p.Name)
			l.refs[key] = p
			if told[key] || !slices.Contains(unread, m.Ref()) {
				continue
			}
			stands, err := archive.Stands(ctx, l.overlaid(), key, p.Length)
			if err != nil {
				return err
			}
			if !stands {
				told[key] = true
				missing = append(missing, check.Finding{Object: key, Kind: check.KindPack, What: "it is missing, or has another length"})
			}
		}
		return nil
	})
	return missing, err
}

// allMaps are the maps that checkpoints name.
func (l *planner) allMaps() map[archive.MapRef]bool {
	all := make(map[archive.MapRef]bool)
	for _, m := range l.manifests {
		for ref := range m.References() {
			if ref.Map != nil {
				all[*ref.Map] = true
			}
		}
	}
	return all
}

// whoHas is the first of the other repositories that has an object whole; nil: none.
func (l *planner) whoHas(ctx context.Context, key string, ref archive.Ref) (*Source, archive.Ref, error) {
	for i := range l.whole {
		from := &l.whole[i]
		if ref.Length < 0 {
			info, err := from.Repo.Store.Stat(ctx, key)
			if errors.Is(err, objstore.ErrNotFound) {
				continue
			}
			if err != nil {
				return nil, ref, err
			}
			ref.Length = info.Size
		}
		err := archive.VerifyObject(ctx, from.Repo.Store, key, ref.Length, true)
		if err == nil {
			return from, ref, nil
		}
		if !archive.IsDamage(err) {
			return nil, ref, err
		}
	}
	return nil, ref, nil
}
