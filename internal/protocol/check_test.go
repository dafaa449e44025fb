// SPDX-License-Identifier: Apache-2.0

package protocol_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
)

// checker looks whether every checkpoint has all its objects. What one needs depends on
// nothing but its manifest, and is found out once.
type checker struct {
	*setup
	needs map[*blob]needed
}

type needed struct {
	name    string
	objects []chain.Object
	err     error
}

func newChecker(s *setup) *checker { return &checker{setup: s, needs: make(map[*blob]needed)} }

// all returns what some checkpoint lacks.
func (c *checker) all(all objects) error {
	for _, o := range all.under("domains/") {
		if !strings.Contains(o.key, "/checkpoints/") {
			continue
		}
		n, ok := c.needs[o.blob]
		if !ok {
			n = c.find(o, all)
			c.needs[o.blob] = n
		}
		if n.err != nil {
			return fmt.Errorf("checkpoint %s: %w", o.key, n.err)
		}
		for _, need := range n.objects {
			if b := all.get(need.Key); b == nil || int64(len(b.data)) != need.Ref.Length {
				return fmt.Errorf("checkpoint %s lacks %s", n.name, need.Key)
			}
		}
	}
	return nil
}

// forgotten returns which checkpoint was deleted in a step: one that stands is only ever
// replaced, by who has seen it. All must have been called before.
func (c *checker) forgotten(before, now objects) error {
	for _, o := range before.under("domains/") {
		if n := c.needs[o.blob]; n.name != "" && now.get(o.key) == nil {
			return fmt.Errorf("checkpoint %s is deleted, whatever stands there", n.name)
		}
	}
	return nil
}

// find reads a manifest and its maps.
func (c *checker) find(o object, all objects) needed {
	ctx := context.Background()
	store := objstore.NewMem()
	for _, o := range all {
		if err := store.Put(ctx, o.key, bytes.NewReader(o.data), objstore.PutOptions{}); err != nil {
			return needed{err: err}
		}
	}
	repo := &chain.Repository{Store: store, Config: c.repo.Config, Access: &chain.Access{Authority: authority{"checker", true, nil}}}
	k := chain.ParseKey(o.key)
	slot, err := repo.Slot(ctx, k.Domain, k.Name)
	if err != nil || slot.Manifest == nil {
		return needed{err: err}
	}
	objects, err := repo.Needs(ctx, slot.Manifest, nil)
	return needed{name: k.Name, objects: objects, err: err}
}
