// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/objstore"
)

// Brief is what a manifest says in short, for who asks how things are and builds nothing on it.
type Brief struct {
	Checkpoint string    `json:"checkpoint"`
	Tag        string    `json:"tag"` // of the stored bytes, as a listing tells them from others
	UUID       string    `json:"uuid"`
	Sequence   int64     `json:"sequence"`
	Kind       string    `json:"kind"`
	Created    time.Time `json:"created"`
	Stored     int64     `json:"stored"` // bytes, of all disks
}

// DomainBriefs are those of a domain.
type DomainBriefs struct {
	Briefs  []Brief // sorted by sequence and then uuid
	Damaged []error // for each manifest that is damaged or too new
	Fresh   int     // how many manifests had to be read
}

// Briefs are those of some domains, as one listing shows them; domains without checkpoints are
// not in the map. What known has of a domain is taken for a manifest that the listing shows
// under the same tag; all others are read and proven. The error is the store's.
func (r *Repository) Briefs(ctx context.Context, domains []string, known map[string][]Brief) (map[string]*DomainBriefs, error) {
	b := &briefs{r: r, found: make(map[string]*DomainBriefs), known: make(map[string]map[string]Brief)}
	for _, d := range domains {
		of := make(map[string]Brief, len(known[d]))
		for _, k := range known[d] {
			of[k.Checkpoint] = k
		}
		b.known[d] = of
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	listed := 0
	for l, err := range r.eachListed(gctx, domainsPrefix, KeyManifest) {
		if err != nil {
			g.Go(func() error { return err })
			break
		}
		listed++
		of, wanted := b.known[l.Domain]
		if !wanted {
			continue
		}
		if k, ok := of[l.Name]; ok && k.Tag == briefTag(l.info) && k.Tag != "" {
			b.add(l.Domain, k, false)
			continue
		}
		g.Go(func() error { return b.read(gctx, l) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if listed == 0 {
		return nil, r.confirmListing(ctx)
	}
	for _, d := range b.found {
		slices.SortFunc(d.Briefs, func(x, y Brief) int {
			return bySequence(&Manifest{Sequence: x.Sequence, UUID: x.UUID}, &Manifest{Sequence: y.Sequence, UUID: y.UUID})
		})
	}
	return b.found, nil
}

// briefs collects them.
type briefs struct {
	r     *Repository
	known map[string]map[string]Brief // by domain and checkpoint

	mu    sync.Mutex
	found map[string]*DomainBriefs
}

// of needs mu.
func (b *briefs) of(domain string) *DomainBriefs {
	if b.found[domain] == nil {
		b.found[domain] = &DomainBriefs{}
	}
	return b.found[domain]
}

func (b *briefs) add(domain string, one Brief, fresh bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	d := b.of(domain)
	if d.Briefs = append(d.Briefs, one); fresh {
		d.Fresh++
	}
}

// read reads a manifest.
func (b *briefs) read(ctx context.Context, l listed) error {
	slot, err := b.r.listedSlot(ctx, l)
	switch {
	case unusable(err):
		b.mu.Lock()
		defer b.mu.Unlock()
		d := b.of(l.Domain)
		d.Damaged = append(d.Damaged, err)
		return nil
	case errors.Is(err, objstore.ErrNotFound), err == nil && slot.Manifest == nil:
		return nil // it has been removed
	case err != nil:
		return err
	}
	m := slot.Manifest
	one := Brief{Checkpoint: m.Checkpoint, Tag: briefTag(l.info), UUID: m.UUID, Sequence: m.Sequence, Kind: m.Kind, Created: m.Created}
	for i := range m.Disks {
		one.Stored += m.Disks[i].StoredBytes
	}
	b.add(l.Domain, one, true)
	return nil
}

// briefTag tells what a listing shows from other bytes under the same key: by the store's own
// word for them, else, in a folder, by size and time. A file that was damaged where it lies keeps
// them; who proves a repository asks no briefs. "": nothing tells.
func briefTag(info objstore.Info) string {
	switch {
	case info.Version != "":
		return info.Version
	case info.Stored.IsZero():
		return ""
	}
	return strconv.FormatInt(info.Size, 10) + fmt.Sprintf("@%d", info.Stored.UnixNano())
}
