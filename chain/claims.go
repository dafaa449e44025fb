// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"

	"github.com/imgbackup/imgbackup/archive"
)

// Claims is what manifests say that they need, any of which may be damaged or forged: what one
// of them says, or can't say, takes nothing away from what the others need. So a map counts as
// read only where it was, as the very manifest describes it, and an object that is claimed with
// two lengths is two.
type Claims struct {
	repo    *Repository
	maps    map[archive.MapRef]bool // that were read
	objects map[Object]bool
}

// NewClaims returns one to add manifests to, whose maps are read in r.
func (r *Repository) NewClaims() *Claims {
	return &Claims{repo: r, maps: make(map[archive.MapRef]bool), objects: make(map[Object]bool)}
}

// Add returns what a manifest claims that none has before. That is also so where some of its
// maps can't be read, with an error for which [Unusable] is true: then the packs of these lack.
// With any other error nothing is known.
func (c *Claims) Add(ctx context.Context, m *Manifest) ([]Object, error) {
	var fresh []Object
	add := func(o Object) {
		if !c.objects[o] {
			c.objects[o] = true
			fresh = append(fresh, o)
		}
	}
	var maps []archive.MapRef
	for ref := range m.References() {
		add(Object{ref.Key, ref.Object})
		if ref.Map != nil && !c.maps[*ref.Map] {
			maps = append(maps, *ref.Map)
		}
	}
	each, err := c.repo.packsOf(ctx, maps)
	var wrong []error
	if unusable(err) { // of some of them, at least
		each = make([][]archive.Ref, len(maps))
		for i := range maps {
			one, err := c.repo.packsOf(ctx, maps[i:i+1])
			switch {
			case unusable(err):
				wrong = append(wrong, err)
			case err != nil:
				return nil, err
			default:
				each[i], c.maps[maps[i]] = one[0], true
			}
		}
	} else if err != nil {
		return nil, err
	} else {
		for _, ref := range maps {
			c.maps[ref] = true
		}
	}
	for _, packs := range each {
		for _, pack := range packs {
			add(Object{archive.PackKey(pack.Name), pack})
		}
	}
	return fresh, errors.Join(wrong...)
}
