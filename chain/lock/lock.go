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
	"slices"
	"strings"
	"sync"
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
	if err := repo.CheckWritable(); err != nil {
		return nil, err // what that keeps besides is not known here, and would not be kept on
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

	begun    time.Time // this run
	last     time.Time // the run before; zero: none is known
	sure     time.Time // one before this run, which the store bears out; zero: none
	locker   objstore.Locker
	versions objstore.Versions
	singles  []single
	wrong    []error // of what checkpoints need and can't be kept on
}

// single is a version that is kept whatever else stands under its key: of what can't be told
// apart without reading all of it, or a key.
type single struct {
	key string
	wanted
	version
}

// claim is what a manifest says of an object that it needs. What another says of one under the
// same key may be wrong, or a lie.
type claim struct {
	key    string
	length int64 // -1: whatever stands there
}

// wanted is an object that is to be kept.
type wanted struct {
	since time.Time // a young checkpoint has needed it
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
	r := &Result{Until: k.begun.Add(time.Duration(k.rule.KeptDays()) * day).Truncate(time.Second)}
	want, err := k.needed(ctx, r)
	if err != nil {
		return nil, err
	}
	found, err := k.find(ctx, want)
	if err != nil {
		return nil, err
	}
	recorded, err := k.repo.LastLocked(ctx)
	if err == nil {
		err = k.findLast(ctx, recorded, want, found)
	}
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

// needed are the objects that the checkpoints need that are younger than the period, by key: of
// all versions of their manifests, so that nobody makes less needed by what he puts on top, or
// by taking a checkpoint away. What can't be read keeps nothing else from being kept on.
func (k *keeper) needed(ctx context.Context, r *Result) (map[claim]wanted, error) {
	want := map[claim]wanted{{chain.ConfigKey, -1}: {}}
	young, err := k.repo.YoungRevisions(ctx, k.begun.Add(-time.Duration(k.rule.Days)*day))
	if err != nil {
		return nil, fmt.Errorf("what every checkpoint needs has to be known: %w", err)
	}
	// The oldest first, so that it is known since when something is needed: since the store has
	// had a manifest that says so. A backup may take days after it was begun, a copy has the time of
	// what it was copied from, and the run before this one knew of neither.
	slices.SortStableFunc(young, func(a, b chain.Revision) int { return a.Stored.Compare(b.Stored) })
	claims := k.repo.Beneath(nil).NewClaims()
	checkpoints := make(map[string]bool)
	for i := range young {
		v := &young[i]
		w := wanted{v.Stored}
		k.singles = append(k.singles, single{v.Key, w, version{id: v.ID, stored: v.Stored, latest: v.Latest}})
		m := v.Manifest
		if m == nil {
			if v.Latest {
				k.wrong = append(k.wrong, fmt.Errorf("what checkpoint %s of %s needs is not known: %w", v.Checkpoint, v.Domain, v.Err))
			}
			continue
		}
		checkpoints[m.UUID] = true
		objects, err := claims.Add(ctx, m)
		switch {
		case err != nil && !chain.Unusable(err):
			return nil, fmt.Errorf("what checkpoint %s of %s needs has to be known: %w", m.Checkpoint, m.Domain, err)
		case err != nil && v.Latest:
			k.wrong = append(k.wrong, fmt.Errorf("what checkpoint %s of %s needs is not known: %w", m.Checkpoint, m.Domain, err))
		}
		for _, obj := range objects {
			want[claim{obj.Key, obj.Ref.Length}] = w
		}
	}
	r.Checkpoints, r.Needed = len(checkpoints), len(want)+len(k.singles)
	return want, nil
}

// find finds the version of each object that is to be kept: the oldest of the right length.
func (k *keeper) find(ctx context.Context, want map[claim]wanted) (map[claim]version, error) {
	found := make(map[claim]version, len(want))
	for v, err := range k.versions.ListVersions(ctx, "", "") {
		if err != nil {
			return nil, err
		}
		// Which of these is right takes a key to know.
		if k.repo.Config.Encryption != nil && !v.Marker && strings.HasPrefix(v.Key, "keys/") {
			k.singles = append(k.singles, single{v.Key, wanted{}, version{id: v.ID, stored: v.Stored, latest: v.Latest}})
		}
		if v.Marker {
			continue
		}
		for _, c := range []claim{{v.Key, v.Size}, {v.Key, -1}} {
			if _, needed := want[c]; !needed {
				continue
			}
			f, has := found[c] // of those of one time the newest come first
			if !has || !v.Stored.After(f.stored) {
				found[c] = version{id: v.ID, stored: v.Stored, latest: v.Latest}
			}
		}
	}
	return found, nil
}

// due reports whether an object is to be kept on now.
func (k *keeper) due(key string, w wanted, v version) bool {
	switch {
	case k.begun.Sub(v.stored) < day:
		return false // the bucket's rule has just begun
	case k.o.All:
		return true
	case !w.since.Before(k.sure) && v.stored.Before(w.since.Add(-day)):
		return true // it is older than who needs it, and perhaps nobody did before
	}
	since := k.last
	if v.stored.After(since) {
		since = v.stored
	}
	return turn(key, k.rule.Slices(), since, k.begun)
}

// turn reports whether the turn of a key is on a day after that of last, up to that of now.
func turn(key string, slices int, last, now time.Time) bool {
	from, to, n := dayOf(last), dayOf(now), int64(slices)
	of := sliceOf(key, n)
	return to-from >= n || to > from && (to-of+n)/n > (from-of+n)/n
}

// sliceOf is which of n slices a key is in: its turn is on the days (since 1970) that leave the
// same rest.
func sliceOf(key string, n int64) int64 {
	sum := archive.Sum([]byte(key))
	return (int64(sum[0])<<8 | int64(sum[1])) % n
}

// kept is an object that is to be kept on.
type kept struct {
	key string
	version
}

// dueNow are those whose turn it is.
func (k *keeper) dueNow(want map[claim]wanted, found map[claim]version, r *Result) (due []kept, missing []string) {
	for c, w := range want {
		v, ok := found[c]
		if !ok {
			missing = append(missing, c.key)
			continue
		}
		if !v.latest {
			r.Covered = append(r.Covered, Covered{Key: c.key, ID: v.id})
		}
		if k.due(c.key, w, v) {
			due = append(due, kept{c.key, v})
		}
	}
	slices.Sort(missing)
	missing = slices.Compact(missing)
	slices.SortFunc(r.Covered, func(a, b Covered) int { return strings.Compare(a.Key, b.Key) })
	for _, s := range k.singles {
		if k.due(s.key, s.wanted, s.version) {
			due = append(due, kept{s.key, s.version})
		}
	}
	return due, missing
}

// extend keeps on what is due, several at once. Where one can't be kept, the others are.
func (k *keeper) extend(ctx context.Context, how objstore.Retention, want map[claim]wanted, found map[claim]version, r *Result) error {
	due, missing := k.dueNow(want, found, r)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, objstore.Connections(k.repo.Store)))
	var done, refused atomic.Int64
	var mu sync.Mutex
	for _, o := range due {
		g.Go(func() error {
			if err := k.retain(gctx, o.key, o.version, r.Until, how); err != nil {
				if n := refused.Add(1); n > maxRefused || gctx.Err() != nil {
					return err
				}
				mu.Lock()
				defer mu.Unlock()
				k.wrong = append(k.wrong, err)
				return nil
			}
			n := done.Add(1)
			if k.o.Progress != nil {
				k.o.Progress(n, int64(len(due)))
			}
			return nil
		})
	}
	err := g.Wait()
	r.Extended = int(done.Load())
	i := slices.IndexFunc(due, func(o kept) bool { return o.latest })
	if err == nil && len(k.wrong) == 0 && i >= 0 {
		err = k.prove(ctx, due[i].key, due[i].version, r.Until)
	}
	if len(missing) > 0 {
		err = errors.Join(err, &MissingError{Keys: missing})
	}
	return errors.Join(append(k.wrong, err)...)
}

// maxRefused is how many objects may fail to be kept on before it is the store that fails.
const maxRefused = 100

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
