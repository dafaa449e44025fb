// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"cmp"
	"context"
	"slices"

	"golang.org/x/sync/errgroup"
)

// maxOthers bounds the domains of which a manifest is read to find one virtual machine.
const maxOthers = 256

// SameMachine returns checkpoints of other domains that tell of the same virtual machine:
// those that added one of some bitmaps that are in its images, and those of a domain whose
// newest checkpoints by name have its UUID (empty: not known). At most 256 domains are
// looked at for that. Each domain comes once. What can't be read tells nothing; what can't
// be listed is an error.
func (r *Repository) SameMachine(ctx context.Context, domain, uuid string, bitmaps []string) ([]*Manifest, error) {
	keys, err := r.list(ctx, domainsPrefix, KeyManifest)
	if err != nil {
		return nil, err
	}
	added := make(map[string]bool) // names of checkpoints
	for _, b := range bitmaps {
		if name, ok := ParseBitmapName(b); ok {
			added[name] = true
		}
	}
	last := make(map[string]string) // of each domain the last checkpoint by name
	var ask []Key
	for _, k := range keys {
		switch {
		case k.Domain == domain:
		case added[k.Name]:
			ask = append(ask, k)
		default:
			last[k.Domain] = max(last[k.Domain], k.Name)
		}
	}
	if uuid != "" && len(last) <= maxOthers {
		for other, name := range last {
			ask = append(ask, Key{Domain: other, Name: name})
		}
	}
	return r.sameMachine(ctx, ask, func(m *Manifest) bool {
		return uuid != "" && m.DomainUUID == uuid || slices.Contains(bitmaps, BitmapName(m.Checkpoint, m.UUID))
	})
}

// sameMachine reads manifests, and returns of each domain one for which is holds.
func (r *Repository) sameMachine(ctx context.Context, keys []Key, is func(*Manifest) bool) ([]*Manifest, error) {
	found := make([]*Manifest, len(keys))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(mapReaders)
	for i, k := range keys {
		g.Go(func() error {
			m, err := r.Manifest(ctx, k.Domain, k.Name)
			if err == nil && is(m) {
				found[i] = m
			}
			return ctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	found = slices.DeleteFunc(found, func(m *Manifest) bool { return m == nil })
	slices.SortFunc(found, func(a, b *Manifest) int {
		return cmp.Or(cmp.Compare(a.Domain, b.Domain), bySequence(b, a))
	})
	return slices.CompactFunc(found, func(a, b *Manifest) bool { return a.Domain == b.Domain }), nil
}
