// SPDX-License-Identifier: Apache-2.0

package prune

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/below"
)

// Purged is what a purge has removed for good.
type Purged struct {
	Versions int64 `json:"versions"` // also markers
	Bytes    int64 `json:"bytes"`
	// Kept are those that nobody needs and that the store still keeps; Next is when the first of
	// them may go, as far as that is known.
	Kept      int64      `json:"kept"`
	KeptBytes int64      `json:"kept_bytes"`
	Next      *time.Time `json:"next,omitempty"`
}

// Purge removes for good what a store that keeps versions has of objects that were deleted or
// replaced, so that their space comes back: of packs, maps and the like what was deleted and is
// needed by no checkpoint, nor by any version of one within the period for which the store keeps
// things; of all else what is no longer on top. What the store keeps by object lock stays,
// and so does all that lies under the key of anything that is needed, under keys/, and the configuration.
func Purge(ctx context.Context, repo *chain.Repository, progress func(done, total int64)) (*Purged, error) {
	versions, ok := objstore.As[objstore.Versions](objstore.Direct(repo.Store))
	if !ok {
		return nil, &objstore.UnsupportedError{Ability: "remove versions: only buckets keep them"}
	}
	p := &purger{repo: repo, versions: versions, needed: make(map[string]bool), result: &Purged{}, progress: progress}
	if rule := repo.Config.ObjectLock; rule != nil {
		p.kept = time.Duration(rule.KeptDays()) * 24 * time.Hour
	}
	// What there is comes first: what is stored after that is not touched.
	keys, err := p.list(ctx)
	if err == nil {
		err = p.findNeeded(ctx)
	}
	if err != nil {
		return nil, err
	}
	return p.result, p.remove(ctx, keys)
}

type purger struct {
	repo     *chain.Repository
	versions objstore.Versions
	kept     time.Duration // since when the store lets nothing go that it was given
	needed   map[string]bool
	progress func(done, total int64)

	mu     sync.Mutex
	result *Purged
}

// list lists the versions of each object that has more than what is on top.
func (p *purger) list(ctx context.Context) ([][]objstore.ObjectVersion, error) {
	of := make(map[string][]objstore.ObjectVersion)
	for v, err := range p.versions.ListVersions(ctx, "", "") {
		if err != nil {
			return nil, fmt.Errorf("list all versions: %w", err)
		}
		kind := chain.ParseKey(v.Key).Kind
		if kind == chain.KeyConfig || kind == chain.KeyAccess || kind == chain.KeyUnknown && !strings.HasPrefix(v.Key, objstore.ProbePrefix) {
			continue
		}
		if !v.Latest || v.Marker {
			of[v.Key] = append(of[v.Key], v)
		}
	}
	var all [][]objstore.ObjectVersion
	for _, list := range of {
		below.Sort(list)
		all = append(all, list)
	}
	return all, nil
}

// findNeeded finds what checkpoints need, those that there are, and young ones in any version.
func (p *purger) findNeeded(ctx context.Context) error {
	claims := p.repo.Beneath(nil).NewClaims()
	need := func(m *chain.Manifest) error {
		objects, err := claims.Add(ctx, m)
		for _, o := range objects {
			p.needed[o.Key] = true
		}
		return err
	}
	if _, err := p.repo.Census(ctx, nil, need); err != nil {
		return fmt.Errorf("what every checkpoint needs has to be known before versions are removed: %w", err)
	}
	for list, err := range p.repo.AllForgotten(ctx) {
		if err != nil {
			return err
		}
		for ref := range list.References() {
			p.needed[ref.Key] = true
		}
	}
	covered, err := p.repo.Covered(ctx, "")
	if err != nil {
		return err
	}
	for _, v := range covered {
		p.needed[v.Key] = true
		if v.Manifest == nil {
			continue
		}
		if err := need(v.Manifest); err != nil && !chain.Unusable(err) {
			return err
		}
	}
	if p.kept == 0 {
		return nil
	}
	young, err := p.repo.YoungRevisions(ctx, time.Now().Add(-p.kept))
	if err != nil {
		return err
	}
	for _, v := range young {
		p.needed[v.Key] = true
		if v.Manifest == nil {
			continue
		}
		if err := need(v.Manifest); err != nil && !chain.Unusable(err) {
			return err
		}
	}
	return nil
}

// remove removes what nobody needs, several at once: what stood before the marker over it, which would
// else be there again.
func (p *purger) remove(ctx context.Context, keys [][]objstore.ObjectVersion) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, objstore.Connections(p.repo.Store)))
	var done int64
	for _, list := range keys {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			err := p.removeOf(gctx, list)
			p.mu.Lock()
			defer p.mu.Unlock()
			if done++; p.progress != nil {
				p.progress(done, int64(len(keys)))
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// removeOf removes versions of one object, the oldest first.
func (p *purger) removeOf(ctx context.Context, list []objstore.ObjectVersion) error {
	_, _, data := archive.ParseKey(list[0].Key)
	deleted := list[0].Latest // then it is a marker
	if p.needed[list[0].Key] || data && !deleted {
		return nil
	}
	whole := true // nothing is left below
	for _, v := range slices.Backward(list) {
		if v.Marker && !whole {
			continue
		}
		gone, err := p.removeOne(ctx, v)
		if err != nil {
			return err
		}
		whole = whole && gone
	}
	return nil
}

// removeOne removes a version that the store lets go.
func (p *purger) removeOne(ctx context.Context, v objstore.ObjectVersion) (bool, error) {
	ends := v.Stored.Add(p.kept)
	locked := !v.Marker && ends.After(time.Now())
	if !locked {
		err := p.versions.DeleteVersion(ctx, v.Key, v.ID)
		if err != nil && ctx.Err() != nil {
			return false, err
		}
		if locked = err != nil; locked && !p.keeps(ctx, v) {
			return false, err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.result
	if !locked {
		r.Versions++
		r.Bytes += v.Size
		return true, nil
	}
	r.Kept++
	r.KeptBytes += v.Size
	if ends.After(time.Now()) && (r.Next == nil || ends.Before(*r.Next)) {
		r.Next = &ends
	}
	return false, nil
}

// keeps reports whether the store keeps a version by object lock.
func (p *purger) keeps(ctx context.Context, v objstore.ObjectVersion) bool {
	locker, ok := objstore.As[objstore.Locker](objstore.Direct(p.repo.Store))
	if !ok {
		return false
	}
	until, _, err := locker.Retained(ctx, v.Key, v.ID)
	return err == nil && until.After(time.Now())
}
