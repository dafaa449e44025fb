// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"context"
	"io"
	"iter"
	"math/rand/v2"
	"time"

	"github.com/imgbackup/imgbackup/objstore"
)

// Of whileBusy.
const (
	busyPatience  = time.Minute
	firstBusyWait = 25 * time.Millisecond
	mostBusyWait  = 400 * time.Millisecond
)

// whileBusy does something again as long as the store refuses it since it has too much to
// do, for a minute. The waits are short: those who have its places now are many, and whoever
// asks rarely is never served.
func whileBusy(ctx context.Context, do func() error) error {
	begun := time.Now()
	for wait := firstBusyWait; ; wait = min(2*wait, mostBusyWait) {
		err := do()
		if !objstore.Busy(err) || time.Since(begun) > busyPatience {
			return err
		}
		timer := time.NewTimer(wait/2 + rand.N(wait))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}

// patient is a store each of whose requests is made again while it is busy.
type patient struct{ s *Store }

var _ objstore.Store = patient{}

// Put implements objstore.Store.
func (p patient) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	return whileBusy(ctx, func() error { return p.s.Put(ctx, key, body, o) })
}

// Get implements objstore.Store.
func (p patient) Get(ctx context.Context, key string, offset, length int64) (r io.ReadCloser, err error) {
	err = whileBusy(ctx, func() (err error) {
		r, err = p.s.Get(ctx, key, offset, length)
		return err
	})
	return r, err
}

// Stat implements objstore.Store.
func (p patient) Stat(ctx context.Context, key string) (info objstore.Info, err error) {
	err = whileBusy(ctx, func() (err error) {
		info, err = p.s.Stat(ctx, key)
		return err
	})
	return info, err
}

// List implements objstore.Store. It is for short ones: all of it is asked for again.
func (p patient) List(ctx context.Context, prefix string) iter.Seq2[objstore.Info, error] {
	return func(yield func(objstore.Info, error) bool) {
		var all []objstore.Info
		err := whileBusy(ctx, func() error {
			all = all[:0]
			for info, err := range p.s.List(ctx, prefix) {
				if err != nil {
					return err
				}
				all = append(all, info)
			}
			return nil
		})
		for _, info := range all {
			if err == nil && !yield(info, nil) {
				return
			}
		}
		if err != nil {
			yield(objstore.Info{}, err)
		}
	}
}

// Delete implements objstore.Store.
func (p patient) Delete(ctx context.Context, key string) error {
	return whileBusy(ctx, func() error { return p.s.Delete(ctx, key) })
}
