// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
)

const (
	// So many manifests and maps are read at once: all that a chain has, most
	// often, since the time goes by in waiting for a store that is far away.
	readers    = 128
	mapReaders = 64
	// keptMaps is how many bytes of maps of one disk are read at once and kept.
	keptMaps = 8 << 20
)

// ErrNoCheckpoint says that a domain has no checkpoint of a name. It comes
// together with objstore.ErrNotFound.
var ErrNoCheckpoint = errors.New("no such checkpoint")

// NoDomainError reports that a repository holds no checkpoint of a domain. It wraps
// objstore.ErrNotFound.
type NoDomainError struct{ Domain string }

func (e *NoDomainError) Error() string { return "the repository holds no domain " + e.Domain }
func (e *NoDomainError) Unwrap() error { return objstore.ErrNotFound }

// Domains returns the names of the domains that have a checkpoint, sorted. There
// are none only if the store's listings can be believed ([ListingError]).
func (r *Repository) Domains(ctx context.Context) ([]string, error) {
	all, err := r.listed(ctx, domainsPrefix, KeyManifest)
	if err != nil {
		return nil, err
	}
	has := make(map[string]bool)
	for _, l := range all {
		has[l.Domain] = has[l.Domain] || l.info.Size > r.maxVoid()
	}
	keys, err := r.withoutVoids(ctx, slices.DeleteFunc(all, func(l listed) bool { return has[l.Domain] }))
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		has[k.Domain] = true
	}
	var domains []string
	for domain, does := range has {
		if does {
			domains = append(domains, domain)
		}
	}
	if len(domains) == 0 {
		return nil, r.confirmListing(ctx)
	}
	slices.Sort(domains)
	return domains, nil
}

// Checkpoints returns the names of a domain's checkpoints, sorted bytewise. An
// unknown domain has none; there are none only if the store's listings can be
// believed ([ListingError]).
func (r *Repository) Checkpoints(ctx context.Context, domain string) ([]string, error) {
	all, err := r.listed(ctx, checkpointsPrefix(domain), KeyManifest)
	if err != nil {
		return nil, err
	}
	keys, err := r.withoutVoids(ctx, all)
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, r.confirmListing(ctx)
	}
	var names []string
	for _, k := range keys {
		names = append(names, k.Name)
	}
	slices.Sort(names)
	return names, nil
}

// list returns the keys of the objects of a kind under a prefix.
func (r *Repository) list(ctx context.Context, prefix string, kind KeyKind) ([]Key, error) {
	all, err := r.listed(ctx, prefix, kind)
	var keys []Key
	for _, l := range all {
		keys = append(keys, l.Key)
	}
	return keys, err
}

// listed is what a listing shows of an object.
type listed struct {
	Key
	info objstore.Info
}

func (r *Repository) listed(ctx context.Context, prefix string, kinds ...KeyKind) ([]listed, error) {
	var all []listed
	for l, err := range r.listing(ctx, prefix, kinds) {
		if err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	return all, nil
}

// eachListed yields what a listing shows of these kinds as it comes, and goes on listing while
// that is used; an error is the last.
func (r *Repository) eachListed(ctx context.Context, prefix string, kinds ...KeyKind) iter.Seq2[listed, error] {
	type found struct {
		l   listed
		err error
	}
	return func(yield func(listed, error) bool) {
		ctx, stop := context.WithCancel(ctx)
		ahead := make(chan found, listedAhead)
		var ended sync.WaitGroup
		defer ended.Wait()
		defer stop()
		ended.Go(func() {
			defer close(ahead)
			for l, err := range r.listing(ctx, prefix, kinds) {
				select {
				case ahead <- found{l, err}:
				case <-ctx.Done():
					return
				}
			}
		})
		for f := range ahead {
			if !yield(f.l, f.err) {
				return
			}
		}
		if err := context.Cause(ctx); err != nil {
			yield(listed{}, err)
		}
	}
}

// listedAhead is how many objects of a listing wait to be used.
const listedAhead = 4096

func (r *Repository) listing(ctx context.Context, prefix string, kinds []KeyKind) iter.Seq2[listed, error] {
	return func(yield func(listed, error) bool) {
		for info, err := range r.Store.List(ctx, prefix) {
			if err != nil {
				yield(listed{}, fmt.Errorf("list %s: %w", prefix, err))
				return
			}
			k := ParseKey(info.Key)
			if slices.Contains(kinds, k.Kind) && strings.HasPrefix(info.Key, prefix) && !yield(listed{k, info}, nil) {
				return
			}
		}
	}
}

// withoutVoids returns the keys of manifests that hold no void; only what is small
// enough to be one is read.
func (r *Repository) withoutVoids(ctx context.Context, all []listed) ([]Key, error) {
	void := make([]bool, len(all))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for i, l := range all {
		if l.info.Size > r.maxVoid() {
			continue
		}
		g.Go(func() error {
			slot, err := r.listedSlot(gctx, l)
			void[i] = err == nil && slot.Manifest == nil
			if unusable(err) {
				return nil // a manifest that is damaged stands there
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var keys []Key
	for i, l := range all {
		if !void[i] {
			keys = append(keys, l.Key)
		}
	}
	return keys, nil
}

// Manifest reads and proves the manifest of a checkpoint. The error is
// ErrNoCheckpoint, an archive.DamageError, a NewerError, or the store's.
func (r *Repository) Manifest(ctx context.Context, domain, name string) (*Manifest, error) {
	slot, err := r.Slot(ctx, domain, name)
	if err != nil {
		return nil, err
	}
	if slot.Manifest == nil {
		return nil, &toldError{
			text: fmt.Sprintf("domain %s has no checkpoint %s (imgbackup list %s shows those it has)", domain, name, domain),
			is:   []error{ErrNoCheckpoint, objstore.ErrNotFound},
		}
	}
	return slot.Manifest, nil
}

// Manifests reads all manifests of a domain, sorted by sequence and then uuid.
// For each one that is damaged or too new there is an error among the second
// result. The last result is the store's failure, after which the others are nil.
func (r *Repository) Manifests(ctx context.Context, domain string) ([]*Manifest, []error, error) {
	h, err := r.History(ctx, domain)
	return h.Manifests, h.Unusable, err
}

// History is what a repository holds of a domain.
type History struct {
	Manifests []*Manifest // sorted by sequence and then uuid
	Unusable  []error     // for each one that is damaged or too new
	Names     []string    // of all checkpoints, also of those that can't be used

	vanished bool // one was removed between the listing and the reading
}

// History reads all manifests of a domain as one listing shows them, as Manifests does.
func (r *Repository) History(ctx context.Context, domain string) (History, error) {
	return r.historyOf(ctx, r.eachListed(ctx, checkpointsPrefix(domain), KeyManifest))
}

// historyOf reads the manifests that a listing shows while it goes on.
func (r *Repository) historyOf(ctx context.Context, all iter.Seq2[listed, error]) (h History, err error) {
	type named struct {
		name string
		void bool
	}
	var names []*named
	slots := func(yield func(func(context.Context) (*Manifest, error), error) bool) {
		for l, err := range all {
			n := &named{name: l.Name}
			if err == nil {
				names = append(names, n)
			}
			read := func(ctx context.Context) (*Manifest, error) {
				slot, err := r.listedSlot(ctx, l)
				if err == nil && slot.Manifest == nil {
					n.void, err = true, objstore.ErrNotFound
				}
				if err != nil {
					return nil, err
				}
				return slot.Manifest, nil
			}
			if !yield(read, err) {
				return
			}
		}
	}
	if h.Manifests, h.Unusable, err = readAll(ctx, slots); err != nil {
		return History{}, err
	}
	for _, n := range names {
		if !n.void {
			h.Names = append(h.Names, n.name)
		}
	}
	if len(h.Names) == 0 {
		return History{}, r.confirmListing(ctx)
	}
	h.vanished = len(h.Manifests)+len(h.Unusable) < len(h.Names)
	slices.SortStableFunc(h.Manifests, bySequence)
	return h, nil
}

// SortByAge puts the oldest first.
func SortByAge(ms []*Manifest) { slices.SortStableFunc(ms, bySequence) }

func bySequence(a, b *Manifest) int {
	return cmp.Or(cmp.Compare(a.Sequence, b.Sequence), cmp.Compare(a.UUID, b.UUID))
}

// readEach reads the objects of these keys (or names), several at once, as readAll does.
func readEach[K, T any](ctx context.Context, keys []K, read func(context.Context, K) (*T, error)) ([]*T, []error, error) {
	return readAll(ctx, func(yield func(func(context.Context) (*T, error), error) bool) {
		for _, key := range keys {
			if !yield(func(ctx context.Context) (*T, error) { return read(ctx, key) }, nil) {
				return
			}
		}
	})
}

// readAll reads objects, several at once, beginning as soon as the first is known. What has
// been removed since it was listed is left out; what is damaged or too new is an error among
// the second result. Both are in the order of reads, whose error is the last result, too.
func readAll[T any](ctx context.Context, reads iter.Seq2[func(context.Context) (*T, error), error]) ([]*T, []error, error) {
	type result struct {
		v   *T
		err error
	}
	var all []*result
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for read, err := range reads {
		if err == nil {
			err = ctx.Err() // one of them has failed
		}
		if err != nil {
			g.Go(func() error { return err })
			break
		}
		one := &result{}
		all = append(all, one)
		g.Go(func() error {
			v, err := read(ctx)
			switch {
			case err == nil:
				one.v = v
			case unusable(err):
				one.err = err
			case !errors.Is(err, objstore.ErrNotFound):
				return err
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	var found []*T
	var errs []error
	for _, one := range all {
		switch {
		case one.v != nil:
			found = append(found, one.v)
		case one.err != nil:
			errs = append(errs, one.err)
		}
	}
	return found, errs, nil
}

// Unusable reports whether an error is about one object's content, which is damaged or too
// new to be read, and not about the store.
func Unusable(err error) bool { return unusable(err) }

// unusable tells errors that are about one object's content.
func unusable(err error) bool {
	var newer *NewerError
	return archive.IsDamage(err) || errors.As(err, &newer)
}

// Newest returns the manifest with the highest sequence, ties broken by the
// higher uuid; nil if there is none.
func Newest(ms []*Manifest) *Manifest {
	if len(ms) == 0 {
		return nil
	}
	return slices.MaxFunc(ms, bySequence)
}

// NextSequence returns the sequence of a backup that begins now: 1 + the highest.
func NextSequence(ms []*Manifest) int64 {
	if m := Newest(ms); m != nil {
		return m.Sequence + 1
	}
	return 1
}

// ReplayMaps opens the maps of a disk, newest first, several at once.
func ReplayMaps(ctx context.Context, r *Repository, d *Disk) ([]*archive.Map, error) {
	maps := make([]*archive.Map, len(d.Maps))
	var keep, total int64
	for _, ref := range d.Maps {
		total += min(ref.Length, keptMaps+1)
	}
	if total <= keptMaps {
		keep = keptMaps
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(mapReaders)
	for i, ref := range d.Maps {
		g.Go(func() (err error) {
			if maps[i], err = archive.OpenMap(ctx, r.Store, ref, keep); err != nil {
				return err
			}
			if err := d.Place(i).Check(maps[i]); err != nil {
				return archive.Damaged(archive.MapKey(ref.Name), fmt.Errorf("as map %d of %d of disk %s: %w", i+1, len(d.Maps), d.Name, err))
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return maps, nil
}
