// SPDX-License-Identifier: Apache-2.0

package objstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// RetryOptions say how long a store is given to come back. Zero values mean
// the defaults.
type RetryOptions struct {
	// Patience is how long after its first failure an operation is tried again;
	// 5 minutes. Progress, such as bytes that were read, starts it anew.
	Patience time.Duration
	// FirstPatience is the same until the store has answered for the first
	// time, when it is likely that it is not there at all; 15 seconds.
	FirstPatience time.Duration
	// FirstDelay is the mean time before the second try, each one after it
	// waits longer; 200 milliseconds.
	FirstDelay time.Duration
	// MaxDelay bounds the mean time between two tries; 10 seconds.
	MaxDelay time.Duration
	// Notify, if any, is told what is about to be tried again, after a wait. It
	// is called from several goroutines.
	Notify func(err error, wait time.Duration)
}

func (o RetryOptions) withDefaults() RetryOptions {
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

// Retry returns a store that tries again what failed, unless [Permanent] says
// that this is in vain, for a bounded time. It never turns a failure into an
// answer: an object that is created by the first of two tries, whose answer is
// lost, is ErrExists for the second, and so for the caller, who compares. A
// listing or a body that breaks off is gone on with where it did, if the store
// can tell that it is still the same object. Cancelling ends it at once.
func Retry(s Store, o RetryOptions) Store {
	return &retrying{store: s, o: o.withDefaults()}
}

// Permanent says whether trying again what failed with err is in vain. What
// nothing is known about is not.
func Permanent(err error) bool {
	var own interface{ Permanent() bool }
	switch {
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrExists), errors.Is(err, ErrTooLarge):
		return true
	case errors.As(err, &own):
		return own.Permanent()
	}
	return false
}

type retrying struct {
	store    Store
	o        RetryOptions
	answered atomic.Bool // the store has answered once
}

var _ Store = (*retrying)(nil)

// Unwrap returns the store that is tried again.
func (r *retrying) Unwrap() Store { return r.store }

// patience is a backoff that ends some time after the first failure.
type patience struct {
	backoff.ExponentialBackOff
	r     *retrying
	since time.Time // of the first failure since there was progress
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
	p.since = time.Time{}
	p.ExponentialBackOff.Reset()
}

// NextBackOff is called after each failure.
func (p *patience) NextBackOff() time.Duration {
	limit := p.r.o.Patience
	if !p.r.answered.Load() {
		limit = p.r.o.FirstPatience
	}
	if p.since.IsZero() {
		p.since = time.Now()
	}
	next := p.ExponentialBackOff.NextBackOff()
	if time.Since(p.since)+next > limit {
		return backoff.Stop
	}
	return next
}

// again calls f until it succeeds, fails for good, or patience ends.
func again[T any](ctx context.Context, r *retrying, p *patience, f func() (T, error)) (T, error) {
	tries, began := 0, time.Now()
	var last error
	v, err := backoff.Retry(ctx, func() (T, error) {
		tries++
		v, err := f()
		if last = err; answer(err) {
			r.answered.Store(true)
		}
		if err != nil && (Permanent(err) || ctx.Err() != nil) {
			err = backoff.Permanent(err)
		}
		return v, err
	}, backoff.WithBackOff(keep{p}), backoff.WithMaxElapsedTime(0), backoff.WithNotify(r.notify))
	switch {
	case err == nil:
		return v, nil
	case ctx.Err() != nil && errors.Is(last, ctx.Err()):
		return v, last
	case ctx.Err() != nil:
		return v, fmt.Errorf("%w while trying again after: %w", ctx.Err(), noSentinels{last})
	case tries > 1 && !Permanent(err):
		return v, fmt.Errorf("%w (given up after %d tries in %s)", err, tries, time.Since(began).Round(time.Second))
	}
	return v, err
}

// answer says whether a result shows that the store is there.
func answer(err error) bool {
	var s3 *S3Error
	return err == nil || errors.Is(err, ErrNotFound) || errors.Is(err, ErrExists) || errors.As(err, &s3)
}

// noSentinels is an error that is only to be read.
type noSentinels struct{ err error }

func (e noSentinels) Error() string { return e.err.Error() }

// keep is a backoff that begins where it ended.
type keep struct{ *patience }

func (keep) Reset() {}

func (r *retrying) notify(err error, wait time.Duration) {
	if r.o.Notify != nil {
		r.o.Notify(err, wait)
	}
}

func try[T any](ctx context.Context, r *retrying, f func() (T, error)) (T, error) {
	return again(ctx, r, r.newPatience(), f)
}

// Put implements Store.
func (r *retrying) Put(ctx context.Context, key string, body Body, mode Mode) error {
	if err := ValidKey(key); err != nil {
		return err
	}
	watched := &watchedBody{Body: body}
	doubt := false
	_, err := try(ctx, r, func() (struct{}, error) {
		err := r.store.Put(ctx, key, watched, mode)
		doubt = doubt || InDoubt(err)
		if err != nil && watched.failed.get() != nil {
			err = &permanentError{err} // not the store's fault
		}
		return struct{}{}, err
	})
	if err != nil && doubt && !errors.Is(err, ErrExists) {
		return &doubtError{err} // whatever the last try was told: an earlier one may be on its way
	}
	return err
}

// watchedBody knows whether it could not be read.
type watchedBody struct {
	Body
	failed syncErr
}

func (b *watchedBody) ReadAt(p []byte, off int64) (int, error) {
	n, err := b.Body.ReadAt(p, off)
	if err != nil && n < len(p) && off+int64(n) < b.Size() {
		b.failed.set(err)
	}
	return n, err
}

// Stat implements Store.
func (r *retrying) Stat(ctx context.Context, key string) (Info, error) {
	if err := ValidKey(key); err != nil {
		return Info{}, err
	}
	return try(ctx, r, func() (Info, error) { return r.store.Stat(ctx, key) })
}

// Delete implements Store.
func (r *retrying) Delete(ctx context.Context, key string) error {
	if err := ValidKey(key); err != nil {
		return err
	}
	_, err := try(ctx, r, func() (struct{}, error) { return struct{}{}, r.store.Delete(ctx, key) })
	return err
}

// listAfter is a store that can begin a listing after a key.
type listAfter interface {
	listAfter(ctx context.Context, prefix, after string) iter.Seq2[Info, error]
}

// List implements Store.
func (r *retrying) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		if err := validPrefix(prefix); err != nil {
			yield(Info{}, err)
			return
		}
		after, stopped := "", false
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
			yield(Info{}, err)
		}
	}
}

func (r *retrying) listFrom(ctx context.Context, prefix, after string) iter.Seq2[Info, error] {
	if s, ok := r.store.(listAfter); ok && after != "" {
		return s.listAfter(ctx, prefix, after)
	}
	return r.store.List(ctx, prefix)
}

// Get implements Store.
func (r *retrying) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := errors.Join(ValidKey(key), validRange(key, offset, length)); err != nil {
		return nil, err
	}
	g := &retryReader{ctx: ctx, r: r, patience: r.newPatience(), key: key, offset: offset, length: length}
	if err := g.open(nil); err != nil {
		return nil, err
	}
	return g, nil
}
