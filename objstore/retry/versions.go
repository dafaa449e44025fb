// SPDX-License-Identifier: Apache-2.0

package retry

import (
	"context"
	"io"
	"iter"
	"time"

	"github.com/imgbackup/imgbackup/objstore"
)

// versioned tries again what a store can do with versions. All of it may be repeated.
type versioned struct {
	*retrying
	old   objstore.Versions
	locks objstore.Locker
}

var (
	_ objstore.Versions = (*versioned)(nil)
	_ objstore.Locker   = (*versioned)(nil)
)

// ListVersions implements objstore.Versions. It goes on behind the last key of which it has
// seen all versions, as long as they are sorted.
func (v *versioned) ListVersions(ctx context.Context, prefix, after string) iter.Seq2[objstore.ObjectVersion, error] {
	return func(yield func(objstore.ObjectVersion, error) bool) {
		stopped := false
		p := v.newPatience()
		var of []objstore.ObjectVersion // one key's
		unsorted := false
		give := func() {
			for _, o := range of {
				if stopped = !yield(o, nil); stopped {
					return
				}
			}
			if len(of) > 0 {
				after = of[0].Key
			}
			of = of[:0]
		}
		_, err := again(ctx, v.retrying, p, func() (struct{}, error) {
			of = of[:0]
			for o, err := range v.old.ListVersions(ctx, prefix, after) {
				if err != nil && unsorted {
					err = objstore.MarkPermanent(err)
				}
				if err != nil {
					return struct{}{}, err
				}
				p.Reset()
				unsorted = unsorted || o.Key < after || len(of) > 0 && o.Key < of[0].Key
				if len(of) > 0 && of[0].Key != o.Key {
					give()
				}
				if stopped {
					return struct{}{}, nil
				}
				of = append(of, o)
			}
			give()
			return struct{}{}, nil
		})
		if err != nil && !stopped {
			yield(objstore.ObjectVersion{}, err)
		}
	}
}

// GetOld implements objstore.Versions. A body that breaks off is not gone on with.
func (v *versioned) GetOld(ctx context.Context, key, id string, offset, length int64) (io.ReadCloser, error) {
	return try(ctx, v.retrying, func() (io.ReadCloser, error) { return v.old.GetOld(ctx, key, id, offset, length) })
}

// DeleteVersion implements objstore.Versions.
func (v *versioned) DeleteVersion(ctx context.Context, key, id string) error {
	return v.do(ctx, func() error { return v.old.DeleteVersion(ctx, key, id) })
}

// LockRule implements objstore.Locker.
func (v *versioned) LockRule(ctx context.Context) (objstore.LockRule, error) {
	return try(ctx, v.retrying, func() (objstore.LockRule, error) { return v.locks.LockRule(ctx) })
}

// SetLockRule implements objstore.Locker.
func (v *versioned) SetLockRule(ctx context.Context, r objstore.LockRule) error {
	return v.do(ctx, func() error { return v.locks.SetLockRule(ctx, r) })
}

// Retained implements objstore.Locker.
func (v *versioned) Retained(ctx context.Context, key, id string) (until time.Time, how objstore.Retention, err error) {
	err = v.do(ctx, func() (err error) {
		until, how, err = v.locks.Retained(ctx, key, id)
		return err
	})
	return until, how, err
}

// Retain implements objstore.Locker.
func (v *versioned) Retain(ctx context.Context, key, id string, until time.Time, how objstore.Retention) error {
	return v.do(ctx, func() error { return v.locks.Retain(ctx, key, id, until, how) })
}

func (v *versioned) do(ctx context.Context, f func() error) error {
	_, err := try(ctx, v.retrying, func() (struct{}, error) { return struct{}{}, f() })
	return err
}
