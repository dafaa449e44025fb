// SPDX-License-Identifier: Apache-2.0

// Package retry is a store around a store: what fails on the way to it is tried
// again, for a bounded time. It is the one place that decides about that; what
// is in vain is [objstore.Permanent]'s to say.
package retry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/imgbackup/imgbackup/objstore"
)

// Options say how long a store is given to come back. Zero values mean
// the defaults.
type Options struct {
	// Patience is how long after its first failure an operation is tried again;
	// 5 minutes. Progress, such as bytes that were read, starts it anew. One that was tried
	// only a few times by then, as large objects on slow lines are, is tried again all the
	// same.
	Patience time.Duration
	// FirstPatience is the same until the store has answered for the first
	// time, when it is likely that it is not there at all; 15 seconds.
	FirstPatience time.Duration
	// BusyPatience is how long an operation is tried again that the store refuses since it has
	// too much to do, while it works for others; 0: as long as it does.
	BusyPatience time.Duration
	// FirstDelay is the mean time before the second try, each one after it
	// waits longer; 200 milliseconds.
	FirstDelay time.Duration
	// MaxDelay bounds the mean time between two tries; 10 seconds.
	MaxDelay time.Duration
	// Notify, if any, is told what is about to be tried again, after a wait. It
	// is called from several goroutines.
	Notify func(err error, wait time.Duration)
}

func (o Options) withDefaults() Options {
	for _, d := range []struct {
		option *time.Duration
		value  time.Duration
	}{
		{&o.Patience, 5 * time.Minute},
		{&o.FirstPatience, 15 * time.Second},
		{&o.FirstDelay, 200 * time.Millisecond},
		{&o.MaxDelay, 10 * time.Second},
	} {
		if *d.option <= 0 {
			*d.option = d.value
		}
	}
	o.FirstPatience = min(o.FirstPatience, o.Patience)
	return o
}

// New returns a store that tries again what failed, unless [objstore.Permanent] reports that this
// is in vain, for a bounded time. It never turns a failure into an answer: an object that is
// created by the first of two tries, whose answer is lost, is ErrExists for the second, and so for
// the caller, who compares. What is refused because the store is asked for too much at once is
// waited for as long as it does anything else. A listing or a body that breaks off is gone on with where it did, if
// the store can tell that it is still the same object. Cancelling ends it at once.
func New(s objstore.Store, o Options) objstore.Store {
	r := &retrying{store: s, o: o.withDefaults()}
	old, versions := objstore.As[objstore.Versions](s)
	locks, locking := objstore.As[objstore.Locker](s)
	if versions && locking {
		return &versioned{retrying: r, old: old, locks: locks}
	}
	return r
}

// Probe implements objstore.Prober: what fails on the way begins anew. A store
// that is no Prober is taken for fit.
func (r *retrying) Probe(ctx context.Context) error {
	p, ok := objstore.As[objstore.Prober](r.store)
	if !ok {
		return nil
	}
	_, err := try(ctx, r, func() (struct{}, error) { return struct{}{}, p.Probe(ctx) })
	return err
}

type retrying struct {
	store    objstore.Store
	o        Options
	answered atomic.Bool  // the store has answered once
	served   atomic.Int64 // when it last did what it was asked for, Unix nanoseconds

	mu   sync.Mutex
	back chan struct{} // closed when it does that next; nil: nobody waits for it
}

var (
	_ objstore.Store  = (*retrying)(nil)
	_ objstore.Prober = (*retrying)(nil)
)

// Unwrap returns the store that is tried again.
func (r *retrying) Unwrap() objstore.Store { return r.store }

// patience is a backoff that ends some time after the first failure.
type patience struct {
	backoff.ExponentialBackOff
	r     *retrying
	since time.Time // of the first failure since there was progress, or the store worked for others
	begun time.Time // of the first failure since there was progress
	fails int       // since then
	busy  bool      // the last failure was that the store has too much to do
}

func (r *retrying) newPatience() *patience {
	p := &patience{r: r, ExponentialBackOff: backoff.ExponentialBackOff{
		InitialInterval:     r.o.FirstDelay,
		RandomizationFactor: 0.5,
		Multiplier:          2,
		MaxInterval:         r.o.MaxDelay,
	}}
	p.Reset()
	return p
}

// Reset is called when there was progress.
func (p *patience) Reset() {
	p.since, p.begun, p.fails = time.Time{}, time.Time{}, 0
	p.ExponentialBackOff.Reset()
}

// leastTries is how often an operation is tried of a store that has answered once.
const leastTries = 4

// NextBackOff is called after each failure.
func (p *patience) NextBackOff() time.Duration {
	limit, least := p.r.o.Patience, leastTries
	if !p.r.answered.Load() {
		limit, least = p.r.o.FirstPatience, 0
	}
	p.fails++
	if p.since.IsZero() {
		p.since = time.Now()
		p.begun = p.since
	}
	if served := time.Unix(0, p.r.served.Load()); p.busy && served.After(p.since) {
		p.since = served // it works on what others have asked for, and so will on this
	}
	next := p.ExponentialBackOff.NextBackOff()
	if busy := p.r.o.BusyPatience; busy > 0 && time.Since(p.begun)+next > busy && p.fails >= least {
		return backoff.Stop
	}
	if time.Since(p.since)+next > limit && p.fails >= least {
		return backoff.Stop
	}
	return next
}

// again calls f until it succeeds, fails for good, or patience ends.
func again[T any](ctx context.Context, r *retrying, p *patience, f func() (T, error)) (T, error) {
	for tries, began := 1, time.Now(); ; tries++ {
		v, err := f()
		if answer(err) {
			r.answered.Store(true)
		}
		if err == nil {
			r.serves()
			return v, nil
		}
		if ctx.Err() == nil && objstore.Permanent(err) {
			return v, err
		}
		if ctx.Err() == nil {
			p.busy = objstore.Busy(err)
			wait := p.NextBackOff()
			switch {
			case wait != backoff.Stop:
				r.notify(err, wait)
				if r.wait(ctx, p, wait) {
					continue
				}
			case tries > 1:
				return v, fmt.Errorf("%w (given up after %d tries in %s)", err, tries, time.Since(began).Round(time.Second))
			default:
				return v, err
			}
		}
		if errors.Is(err, ctx.Err()) {
			return v, err
		}
		return v, fmt.Errorf("%w while trying again after: %w", ctx.Err(), noSentinels{err})
	}
}

// serves notes that the store has done what it was asked for, and tells those who wait for that.
func (r *retrying) serves() {
	r.served.Store(time.Now().UnixNano())
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.back != nil {
		close(r.back)
		r.back = nil
	}
}

// wait waits before the next try, or until an outage has ended as others see; false: ctx has ended.
func (r *retrying) wait(ctx context.Context, p *patience, most time.Duration) bool {
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.comesBack(p):
	case <-ctx.Done():
		return false
	}
	return true
}

// comesBack is closed when the store works again. Where it has worked for others since this
// operation failed first, or has too much to do, that is not what is waited for, and it is nil: so
// an operation is tried early once, and not whenever another succeeds.
func (r *retrying) comesBack(p *patience) <-chan struct{} {
	if p.busy {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Unix(0, r.served.Load()).After(p.begun) {
		return nil
	}
	if r.back == nil {
		r.back = make(chan struct{})
	}
	return r.back
}

// answer reports whether a result shows that the store is there. An error knows
// it itself that has a method Answered() bool.
func answer(err error) bool {
	var own interface{ Answered() bool }
	return err == nil || errors.Is(err, objstore.ErrNotFound) || errors.Is(err, objstore.ErrExists) ||
		errors.As(err, &own) && own.Answered()
}

// noSentinels is an error that is only to be read.
type noSentinels struct{ err error }

func (e noSentinels) Error() string { return e.err.Error() }

func (r *retrying) notify(err error, wait time.Duration) {
	if r.o.Notify != nil {
		r.o.Notify(err, wait)
	}
}

func try[T any](ctx context.Context, r *retrying, f func() (T, error)) (T, error) {
	return again(ctx, r, r.newPatience(), f)
}

// Put implements Store.
func (r *retrying) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	if err := errors.Join(objstore.CheckKey(key), o.Check()); err != nil {
		return err
	}
	watched := &watchedBody{Body: body}
	doubt := false
	_, err := try(ctx, r, func() (struct{}, error) {
		err := r.store.Put(ctx, key, watched, o)
		doubt = doubt || objstore.InDoubt(err)
		if err != nil && watched.failed.get() != nil {
			err = objstore.MarkPermanent(err) // not the store's fault
		}
		return struct{}{}, err
	})
	if doubt && o.Late != nil {
		*o.Late = true
	}
	if err != nil && doubt && !errors.Is(err, objstore.ErrExists) {
		return objstore.MarkInDoubt(err) // whatever the last try was told: an earlier one may be on its way
	}
	return err
}

// Stat implements Store.
func (r *retrying) Stat(ctx context.Context, key string) (objstore.Info, error) {
	if err := objstore.CheckKey(key); err != nil {
		return objstore.Info{}, err
	}
	return try(ctx, r, func() (objstore.Info, error) { return r.store.Stat(ctx, key) })
}

// Delete implements Store.
func (r *retrying) Delete(ctx context.Context, key string) error {
	if err := objstore.CheckKey(key); err != nil {
		return err
	}
	_, err := try(ctx, r, func() (struct{}, error) { return struct{}{}, r.store.Delete(ctx, key) })
	return err
}

// List implements Store.
func (r *retrying) List(ctx context.Context, prefix string) iter.Seq2[objstore.Info, error] {
	return r.ListAfter(ctx, prefix, "")
}

// ListAfter implements objstore.ListerAfter, whatever the store can.
func (r *retrying) ListAfter(ctx context.Context, prefix, after string) iter.Seq2[objstore.Info, error] {
	return func(yield func(objstore.Info, error) bool) {
		if err := objstore.CheckPrefix(prefix); err != nil {
			yield(objstore.Info{}, err)
			return
		}
		after, stopped := after, false
		p := r.newPatience()
		_, err := again(ctx, r, p, func() (struct{}, error) {
			for info, err := range r.listFrom(ctx, prefix, after) {
				if err != nil {
					return struct{}{}, err
				}
				if after != "" && info.Key <= after {
					continue
				}
				after = info.Key
				p.Reset()
				if !yield(info, nil) {
					stopped = true
					return struct{}{}, nil
				}
			}
			return struct{}{}, nil
		})
		if err != nil && !stopped {
			yield(objstore.Info{}, err)
		}
	}
}

func (r *retrying) listFrom(ctx context.Context, prefix, after string) iter.Seq2[objstore.Info, error] {
	if s, ok := r.store.(objstore.ListerAfter); ok && after != "" {
		return s.ListAfter(ctx, prefix, after)
	}
	return r.store.List(ctx, prefix)
}

// Get implements Store.
func (r *retrying) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := errors.Join(objstore.CheckKey(key), objstore.CheckRange(key, offset, length)); err != nil {
		return nil, err
	}
	g := &retryReader{ctx: ctx, r: r, patience: r.newPatience(), key: key, offset: offset, length: length}
	if err := g.open(nil); err != nil {
		return nil, err
	}
	return g, nil
}
