// SPDX-License-Identifier: Apache-2.0

// Package lock keeps what checkpoints need from being removed, in a bucket with object lock:
// so that who holds a host's credentials can't destroy what it has stored.
//
// The bucket's own rule keeps each object from when it is stored ([chain.ObjectLock]). An older
// one that checkpoints go on to need is kept on here. An object's turn comes once in as many
// days as there are slices, by its name: nothing has to be listed or asked for that, no day has
// much to do, and there is nothing that could be forged. What is needed again, after no young
// checkpoint had needed it, is kept on at once.
package lock

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
)

const day = 24 * time.Hour

// Options say how objects are kept on.
type Options struct {
	All      bool                    // not only what is due
	Now      func() time.Time        // nil: time.Now
	Progress func(done, total int64) // objects; may be nil
}

// Result is what was kept on.
type Result struct {
	Checkpoints int       // that are younger than the repository's period
	Needed      int       // objects that they need
	Extended    int       // of these, whose turn it was
	Until       time.Time // till when those are kept
	Covered     []Covered // where something lies on top of what is needed, by key
}

// Covered is an object that is needed and not what its key gives: something was stored, or a
// marker put, on top of it.
type Covered struct {
	Key string
	ID  string // of the version that is needed
}

// MissingError says that versions of objects are not there that checkpoints need.
type MissingError struct{ Keys []string } // sorted

func (e *MissingError) Error() string {
	return fmt.Sprintf("%d objects that checkpoints need are not there, so they can't be kept, the first: %s (imgbackup check tells more)", len(e.Keys), e.Keys[0])
}

// Run keeps on what is due. Where some objects can't be, the others are, and it is an error.
func Run(ctx context.Context, repo *chain.Repository, o Options) (*Result, error) {
	rule := repo.Config.ObjectLock
	if rule == nil {
		return nil, errors.New("this repository was made without --object-lock: nothing keeps its objects")
	}
	k := &keeper{repo: repo, rule: rule, o: o, now: time.Now}
	if o.Now != nil {
		k.now = o.Now
	}
	return k.run(ctx)
}

type keeper struct {
	repo *chain.Repository
	rule *chain.ObjectLock
	o    Options
	now  func() time.Time

	begun, last time.Time // of this run, and of the one before; zero: not known
	locker      objstore.Locker
	versions    objstore.Versions
	keyFiles    []keyFile // of an encrypted repository
}

// keyFile is a version of an object under keys/, without which nothing can be read. All of them
// are kept: which one is right takes a key to know.
type keyFile struct {
	key string
	version
}

// wanted is an object that is to be kept.
type wanted struct {
	length int64 // -1: whatever stands there
	before bool  // a checkpoint needs it that did so, and was young, at the last run
}

// version is the one of an object that is to be kept.
type version struct {
	id     string
	stored time.Time
	latest bool
}

func (k *keeper) run(ctx context.Context) (*Result, error) {
	store := objstore.Direct(k.repo.Store)
	var ok bool
	if k.locker, ok = objstore.As[objstore.Locker](store); ok {
		k.versions, ok = objstore.As[objstore.Versions](store)
	}
	if !ok {
		return nil, &objstore.UnsupportedError{Ability: "keep an object for a time: object lock is of buckets"}
	}
	how, err := k.rule.Retention()
	if err != nil {
		return nil, err
	}
	if err := k.checkRule(ctx, how); err != nil {
		return nil, err
	}
	k.begun = k.now().UTC()
	if k.last, err = k.repo.LastLocked(ctx); err != nil {
		return nil, err
	}
	if k.last.After(k.begun) {
		k.last = time.Time{} // a clock was wrong, or somebody lies: all is due
	}
	r := &Result{Until: k.begun.Add(time.Duration(k.rule.KeptDays()) * day).Truncate(time.Second)}
	want, err := k.needed(ctx, r)
	if err != nil {
		return nil, err
	}
	found, err := k.find(ctx, want)
	if err != nil {
		return nil, err
	}
	if err := k.extend(ctx, how, want, found, r); err != nil {
		return r, err
	}
	return r, k.repo.PutLocked(ctx, k.begun)
}

// checkRule sees that the bucket still keeps what hosts store.
func (k *keeper) checkRule(ctx context.Context, how objstore.Retention) error {
	is, err := k.locker.LockRule(ctx)
	if err != nil {
		return err
	}
	if is.Days < k.rule.KeptDays() || how == objstore.Compliance && is.How != objstore.Compliance {
		return fmt.Errorf("the bucket's rule keeps what is stored for %d days (%s), and this repository needs %d (%s): somebody has changed it; set it back, for example by mc retention set --default", is.Days, is.How, k.rule.KeptDays(), how)
	}
	return nil
}

// needed are the objects that the checkpoints need that are younger than the period, by key.
func (k *keeper) needed(ctx context.Context, r *Result) (map[string]wanted, error) {
	want := map[string]wanted{chain.ConfigKey: {-1, true}}
	var young []*chain.Manifest
	_, err := k.repo.Census(ctx, nil, func(m *chain.Manifest) error {
		if k.begun.Sub(m.Created) < time.Duration(k.rule.Days)*day {
			young = append(young, m)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("what every checkpoint needs has to be known: %w", err)
	}
	r.Checkpoints = len(young)
	// Those that the last run knew first, so that what they need is known to be so.
	slices.SortFunc(young, func(a, b *chain.Manifest) int { return a.Created.Compare(b.Created) })
	for _, m := range young {
		before := !k.last.IsZero() && m.Created.Before(k.last)
		want[chain.ManifestKey(m.Domain, m.Checkpoint)] = wanted{-1, before}
		objects, err := k.repo.Needs(ctx, m, func(key string) bool { _, known := want[key]; return known })
		if err != nil {
			return nil, fmt.Errorf("what checkpoint %s of %s needs has to be known: %w", m.Checkpoint, m.Domain, err)
		}
		for _, obj := range objects {
			want[obj.Key] = wanted{obj.Ref.Length, before}
		}
	}
	r.Needed = len(want)
	return want, nil
}

// find finds the version of each object that is to be kept: of what is named by its digest,
// or never changes, the oldest of the right length; else the newest.
func (k *keeper) find(ctx context.Context, want map[string]wanted) (map[string]version, error) {
	found := make(map[string]version, len(want))
	for v, err := range k.versions.ListVersions(ctx, "", "") {
		if err != nil {
			return nil, err
		}
		if k.repo.Config.Encryption != nil && !v.Marker && strings.HasPrefix(v.Key, "keys/") {
			k.keyFiles = append(k.keyFiles, keyFile{v.Key, version{id: v.ID, stored: v.Stored, latest: v.Latest}})
		}
		w, needed := want[v.Key]
		if !needed || v.Marker {
			continue
		}
		_, _, named := archive.ParseKey(v.Key)
		constant := named || v.Key == chain.ConfigKey
		if constant && w.length >= 0 && v.Size != w.length {
			continue
		}
		f, has := found[v.Key] // of those of one time the newest come first
		if !has || constant && !v.Stored.After(f.stored) || !constant && v.Stored.After(f.stored) {
			found[v.Key] = version{id: v.ID, stored: v.Stored, latest: v.Latest}
		}
	}
	return found, nil
}

// due reports whether an object is to be kept on now.
func (k *keeper) due(key string, w wanted, v version) bool {
	switch {
	case k.begun.Sub(v.stored) < day:
		return false // the bucket's rule has just begun
	case k.o.All || k.last.IsZero():
		return true
	case k.begun.Sub(v.stored) < time.Duration(k.rule.Slices())*day:
		return false // the bucket's rule keeps it, until its turn comes
	case !w.before:
		return true
	}
	return turn(key, k.rule.Slices(), k.last, k.begun)
}

// turn reports whether the turn of a key is on a day after that of last, up to that of now.
func turn(key string, slices int, last, now time.Time) bool {
	from, to := last.Unix()/86400, now.Unix()/86400
	if to-from >= int64(slices) {
		return true
	}
	sum := archive.Sum([]byte(key))
	of := (int64(sum[0])<<8 | int64(sum[1])) % int64(slices)
	for d := from + 1; d <= to; d++ {
		if d%int64(slices) == of {
			return true
		}
	}
	return false
}

// extend keeps on what is due, several at once.
func (k *keeper) extend(ctx context.Context, how objstore.Retention, want map[string]wanted, found map[string]version, r *Result) error {
	missing := &MissingError{}
	var due []string
	for _, key := range slices.Sorted(maps.Keys(want)) {
		v, ok := found[key]
		if !ok {
			missing.Keys = append(missing.Keys, key)
			continue
		}
		if !v.latest {
			r.Covered = append(r.Covered, Covered{Key: key, ID: v.id})
		}
		if k.due(key, want[key], v) {
			due = append(due, key)
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, objstore.Connections(k.repo.Store)))
	var done atomic.Int64
	for _, key := range due {
		g.Go(func() error {
			if err := k.retain(gctx, key, found[key], r.Until, how); err != nil {
				return err
			}
			n := done.Add(1)
			if k.o.Progress != nil {
				k.o.Progress(n, int64(len(due)))
			}
			return nil
		})
	}
	for _, f := range k.keyFiles {
		if k.due(f.key, wanted{-1, true}, f.version) {
			g.Go(func() error { return k.retain(gctx, f.key, f.version, r.Until, how) })
		}
	}
	err := g.Wait()
	r.Extended = int(done.Load())
	if i := slices.IndexFunc(due, func(key string) bool { return found[key].latest }); err == nil && i >= 0 {
		err = k.prove(ctx, due[i], found[due[i]], r.Until)
	}
	if len(missing.Keys) > 0 {
		err = errors.Join(err, missing)
	}
	return err
}

// retain keeps an object until then. One that is kept longer already, as after a clock was
// set back, can't be kept shorter, and need not.
func (k *keeper) retain(ctx context.Context, key string, v version, until time.Time, how objstore.Retention) error {
	err := k.locker.Retain(ctx, key, v.id, until, how)
	if err != nil && ctx.Err() == nil {
		if kept, _, kerr := k.locker.Retained(ctx, key, v.id); kerr == nil && !kept.Before(until) {
			return nil
		}
	}
	return err
}

// prove sees that the store does as it says, by one object that nothing lies on: of others
// versitygw does not tell.
func (k *keeper) prove(ctx context.Context, key string, v version, until time.Time) error {
	kept, _, err := k.locker.Retained(ctx, key, v.id)
	if err == nil && kept.Before(until) {
		err = fmt.Errorf("%s was to be kept until %s, and the store says that it keeps it until %s", key, until.Format(time.RFC3339), kept.Format(time.RFC3339))
	}
	return err
}
