// SPDX-License-Identifier: Apache-2.0

package hidden

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"

	"github.com/imgbackup/imgbackup/objstore"
)

// Offer implements [objstore.Renaming]. What is not known here may have keys in it, and is not
// offered.
func (s *store) Offer(want, ability any) any {
	switch want.(type) {
	case *objstore.Prober, *objstore.Enclosed, *objstore.Placed, *objstore.Connected, *objstore.Delayed, *objstore.Versioned:
		return ability // without keys, or with such as have no names
	case *objstore.Versions:
		if next, ok := ability.(objstore.Versions); ok {
			return versions{s, next}
		}
	case *objstore.Locker:
		if next, ok := ability.(objstore.Locker); ok {
			return locker{next, s.names}
		}
	case *objstore.BatchDeleter:
		if next, ok := ability.(objstore.BatchDeleter); ok {
			return batch{next, s.names}
		}
	case *objstore.Doubter:
		if next, ok := ability.(objstore.Doubter); ok {
			return doubter{next, s.names}
		}
	}
	return nil
}

type versions struct {
	s    *store
	next objstore.Versions
}

// ListVersions implements [objstore.Versions].
func (v versions) ListVersions(ctx context.Context, prefix, after string) iter.Seq2[objstore.ObjectVersion, error] {
	return listed(prefix, v.s.names, func(stored string) iter.Seq2[objstore.ObjectVersion, error] {
		return v.next.ListVersions(ctx, stored, v.s.names.Stored(after))
	}, func(o *objstore.ObjectVersion) *string { return &o.Key }, func(folder string, all []objstore.ObjectVersion) error {
		return v.s.meet(ctx, folder, v.readers(all))
	})
}

// readers are what asks the objects whose versions these are for their keys.
func (v versions) readers(all []objstore.ObjectVersion) (of []unmet) {
	by := make(map[string][]objstore.ObjectVersion)
	for _, o := range all {
		if _, is := by[o.Key]; !is {
			of = append(of, unmet{o.Key, func(ctx context.Context) (string, error) { return v.keyOf(ctx, by[o.Key]) }})
		}
		by[o.Key] = append(by[o.Key], o)
	}
	return of
}

// keyOf is the key that the first of the versions of an object tells that tells one.
func (v versions) keyOf(ctx context.Context, all []objstore.ObjectVersion) (string, error) {
	for _, o := range all {
		if o.Marker || o.Size > objstore.MaxOld {
			continue
		}
		data, err := v.readOld(ctx, o)
		switch {
		case errors.Is(err, objstore.ErrNotFound): // removed meanwhile
		case err != nil:
			return "", err
		default:
			if key := v.s.learnKey(o.Key, data); key != "" {
				return key, nil
			}
		}
	}
	return "", nil
}

// keyBelow is the key that a version of an object tells, where the store keeps them and tells of
// them.
func (s *store) keyBelow(ctx context.Context, stored string) (string, error) {
	next, ok := objstore.As[objstore.Versions](s.next)
	if !ok {
		return "", nil
	}
	var all []objstore.ObjectVersion
	for o, err := range next.ListVersions(ctx, stored, "") {
		if err != nil && objstore.Permanent(err) {
			return "", nil // it keeps none, or that is not for everybody to know: it is damaged
		}
		if err != nil {
			return "", err
		}
		if o.Key == stored {
			all = append(all, o)
		}
	}
	return versions{s, next}.keyOf(ctx, all)
}

func (v versions) readOld(ctx context.Context, o objstore.ObjectVersion) ([]byte, error) {
	r, err := v.next.GetOld(ctx, o.Key, o.ID, 0, -1)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(r, objstore.MaxOld))
	return data, errors.Join(err, r.Close())
}

// GetOld implements [objstore.Versions].
func (v versions) GetOld(ctx context.Context, key, id string, offset, length int64) (io.ReadCloser, error) {
	return v.next.GetOld(ctx, v.s.names.Stored(key), id, offset, length)
}

// DeleteVersion implements [objstore.Versions].
func (v versions) DeleteVersion(ctx context.Context, key, id string) error {
	return v.next.DeleteVersion(ctx, v.s.names.Stored(key), id)
}

type locker struct {
	objstore.Locker
	names *Names
}

// Retained implements [objstore.Locker].
func (l locker) Retained(ctx context.Context, key, id string) (until time.Time, how objstore.Retention, err error) {
	return l.Locker.Retained(ctx, l.names.Stored(key), id)
}

// Retain implements [objstore.Locker].
func (l locker) Retain(ctx context.Context, key, id string, until time.Time, how objstore.Retention) error {
	return l.Locker.Retain(ctx, l.names.Stored(key), id, until, how)
}

type batch struct {
	next  objstore.BatchDeleter
	names *Names
}

// DeleteBatch implements [objstore.BatchDeleter].
func (b batch) DeleteBatch(ctx context.Context, keys []string) error {
	of := make(map[string]string, len(keys))
	stored := make([]string, len(keys))
	for i, key := range keys {
		stored[i] = b.names.Stored(key)
		of[stored[i]] = key
	}
	err := b.next.DeleteBatch(ctx, stored)
	var some *objstore.BatchError
	if !errors.As(err, &some) {
		return err
	}
	failed := &objstore.BatchError{Errs: some.Errs}
	for _, key := range some.Keys {
		failed.Keys = append(failed.Keys, of[key])
	}
	return failed
}

type doubter struct {
	next  objstore.Doubter
	names *Names
}

// Doubt implements [objstore.Doubter].
func (d doubter) Doubt(ctx context.Context, key string) (bool, error) {
	return d.next.Doubt(ctx, d.names.Stored(key))
}
