// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
)

// A census is all checkpoints that there are. Who deletes what no checkpoint needs
// must know of each one, so a listing is not believed alone here.

// Census reads every manifest of the repository and hands each to do, one at a time.
// It returns their keys, sorted.
//
// What it can't read, it does not know the needs of: a manifest that is damaged or too
// new, and any failure of the store, is the error. The store is asked in two ways which
// manifests there are, all at once and domain by domain; and those that one listing
// lacks, those in known (keys, as an earlier census returned them) and those that other
// manifests descend from are asked for by name. One that stands there and is still not
// listed is a [*ListingError].
func (r *Repository) Census(
	ctx context.Context, known []string, do func(*Manifest) error,
) ([]string, error) {
	c := &census{repo: r, do: do, read: make(map[string]bool), parents: make(map[string]struct{})}
	listed, err := c.list(ctx, known)
	if err != nil {
		return nil, err
	}
	all := listed.union(known)
	for len(all) > 0 {
		if err := c.readAll(ctx, all); err != nil {
			return nil, err
		}
		all = c.unread()
	}
	if err := c.checkListed(ctx, listed); err != nil {
		return nil, err
	}
	return c.keys(), nil
}

type census struct {
	repo *Repository
	do   func(*Manifest) error

	mu      sync.Mutex
	read    map[string]bool     // keys that were asked for; whether a manifest stands there
	parents map[string]struct{} // keys that manifests descend from
}

// listings are the keys of manifests, as the store lists them in two ways.
type listings struct{ atOnce, byDomain map[string]struct{} }

func (l *listings) union(known []string) []string {
	all := maps.Clone(l.atOnce)
	maps.Copy(all, l.byDomain)
	for _, key := range known {
		all[key] = struct{}{}
	}
	return slices.Collect(maps.Keys(all))
}

// list lists the manifests in both ways; known tell of domains, too.
func (c *census) list(ctx context.Context, known []string) (*listings, error) {
	l := &listings{atOnce: make(map[string]struct{}), byDomain: make(map[string]struct{})}
	domains := make(map[string]struct{})
	for _, key := range known {
		domains[ParseKey(key).Domain] = struct{}{}
	}
	for info, err := range c.repo.Store.List(ctx, domainsPrefix) {
		if err != nil {
			return nil, fmt.Errorf("list the checkpoints: %w", err)
		}
		k := ParseKey(info.Key)
		if k.Domain != "" {
			domains[k.Domain] = struct{}{}
		}
		if k.Kind == KeyManifest {
			l.atOnce[info.Key] = struct{}{}
		}
	}
	if len(l.atOnce) == 0 {
		if err := c.repo.confirmListing(ctx); err != nil {
			return nil, err
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for domain := range domains {
		g.Go(func() error {
			keys, err := c.repo.list(gctx, checkpointsPrefix(domain), KeyManifest)
			c.mu.Lock()
			defer c.mu.Unlock()
			for _, k := range keys {
				l.byDomain[ManifestKey(k.Domain, k.Name)] = struct{}{}
			}
			return err
		})
	}
	return l, g.Wait()
}

// readAll reads the manifests under these keys, several at once. Where none stands it
// was forgotten.
func (c *census) readAll(ctx context.Context, keys []string) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for _, key := range keys {
		k := ParseKey(key)
		if k.Kind != KeyManifest {
			return fmt.Errorf("%.300q is not the key of a checkpoint", key)
		}
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			m, err := c.repo.Manifest(gctx, k.Domain, k.Name)
			if err != nil && !errors.Is(err, ErrNoCheckpoint) {
				return err
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			c.read[key] = err == nil
			if err != nil {
				return nil
			}
			c.descends(m)
			return c.do(m)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx) // nil, unless the caller ended the loop
}

// descends notes what a manifest descends from.
func (c *census) descends(m *Manifest) {
	if m.Parent != nil {
		c.parents[ManifestKey(m.Domain, m.Parent.Name)] = struct{}{}
	}
	for _, a := range m.Ancestors {
		c.parents[ManifestKey(m.Domain, a.Name)] = struct{}{}
	}
}

// unread are the parents that have not been asked for.
func (c *census) unread() []string {
	var keys []string
	for key := range c.parents {
		if _, asked := c.read[key]; !asked {
			keys = append(keys, key)
		}
	}
	return keys
}

// checkListed says which of the manifests that stand are not listed, in either way.
func (c *census) checkListed(ctx context.Context, listed *listings) error {
	missing := c.missing(listed)
	if len(missing) == 0 {
		return nil
	}
	again, err := c.list(ctx, missing) // they may have been made since
	if err != nil {
		return err
	}
	missing = slices.DeleteFunc(c.missing(again), func(key string) bool { return !slices.Contains(missing, key) })
	for _, key := range missing {
		k := ParseKey(key)
		if _, err := c.repo.Manifest(ctx, k.Domain, k.Name); err == nil {
			return &ListingError{Object: key}
		} else if !errors.Is(err, ErrNoCheckpoint) { // forgotten since
			return err
		}
	}
	return nil
}

func (c *census) missing(l *listings) []string {
	var keys []string
	for _, key := range c.keys() {
		_, a := l.atOnce[key]
		if _, b := l.byDomain[key]; !a || !b {
			keys = append(keys, key)
		}
	}
	return keys
}

// keys are those of the manifests that stand, sorted.
func (c *census) keys() []string {
	var keys []string
	for key, stands := range c.read {
		if stands {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}
