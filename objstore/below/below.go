// SPDX-License-Identifier: Apache-2.0

// Package below reads objects that somebody has put something on top of: another object, or a
// marker that says that there is none. Where a store keeps versions, what was under a key
// stays, and what is named by its digest proves which of them it is.
//
// It is for who reads. Who stores must not believe that an object is there which its key does
// not give: it may have been pruned.
package below

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/imgbackup/imgbackup/objstore"
)

// Options say what is looked for.
type Options struct {
	// Digest is the SHA-256 of what belongs under a key; false: that is not known.
	Digest func(key string) ([sha256.Size]byte, bool)
	// Always looks for the right version before anything is read, of all objects: for who reads
	// what is known to be wrong.
	Always bool
	// Note, unless nil, is told once of each object that is read from below, at once from
	// several goroutines.
	Note func(key, id string)
}

// New returns a store that reads what lies below, if s keeps versions; else it is s. Nothing
// more is asked of s until an object is missing, or somebody says that it is wrong
// ([objstore.Doubter]).
func New(s objstore.Store, o Options) objstore.Store {
	versions, ok := objstore.As[objstore.Versions](s)
	if !ok {
		return s
	}
	return &store{Store: s, versions: versions, o: o, doubted: make(map[string]*doubted)}
}

type store struct {
	objstore.Store
	versions objstore.Versions
	o        Options

	mu      sync.Mutex
	doubted map[string]*doubted
}

// doubted is an object that was missing or wrong.
type doubted struct {
	mu     sync.Mutex
	looked bool
	right  *objstore.ObjectVersion // nil: none proves itself, or what is on top does
}

var (
	_ objstore.Store   = (*store)(nil)
	_ objstore.Doubter = (*store)(nil)
)

// Unwrap returns the store that has the versions.
func (s *store) Unwrap() objstore.Store { return s.Store }

// Doubt implements [objstore.Doubter].
func (s *store) Doubt(ctx context.Context, key string) (bool, error) {
	v, err := s.find(ctx, key)
	return v != nil, err
}

// known is the version that is read in the place of what is on top; nil: none.
func (s *store) known(ctx context.Context, key string) (*objstore.ObjectVersion, error) {
	if s.o.Always {
		return s.find(ctx, key)
	}
	s.mu.Lock()
	d := s.doubted[key]
	s.mu.Unlock()
	if d == nil {
		return nil, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.right, nil
}

// find looks for the version that proves itself, unless that is on top.
func (s *store) find(ctx context.Context, key string) (*objstore.ObjectVersion, error) {
	digest, ok := s.o.Digest(key)
	if !ok {
		return nil, nil
	}
	s.mu.Lock()
	d := s.doubted[key]
	if d == nil {
		d = &doubted{}
		s.doubted[key] = d
	}
	s.mu.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.looked {
		return d.right, nil
	}
	v, err := Find(ctx, s.versions, key, digest)
	if err != nil {
		return nil, err
	}
	d.looked = true
	if v == nil || v.Latest {
		return nil, nil
	}
	if s.o.Note != nil {
		s.o.Note(key, v.ID)
	}
	d.right = v
	return v, nil
}

// Find returns the version of an object that has this digest, the oldest such; nil: none has, or
// nothing lies below what is on top.
// It reads all of those that it has to prove.
func Find(ctx context.Context, s objstore.Versions, key string, digest [sha256.Size]byte) (*objstore.ObjectVersion, error) {
	all, err := List(ctx, s, key)
	if err != nil {
		return nil, err
	}
	// A bucket without versions lists one of each object, which some servers don't give by its id.
	if !slices.ContainsFunc(all, func(v objstore.ObjectVersion) bool { return !v.Latest && !v.Marker }) {
		return nil, nil
	}
	for _, v := range slices.Backward(all) {
		if v.Marker {
			continue
		}
		sum, err := hash(ctx, s, &v)
		if err != nil && !errors.Is(err, objstore.ErrNotFound) { // removed meanwhile
			return nil, err
		}
		if err == nil && sum == digest {
			return &v, nil
		}
	}
	return nil, nil
}

// List returns the versions of one object, the newest first.
func List(ctx context.Context, s objstore.Versions, key string) ([]objstore.ObjectVersion, error) {
	var all []objstore.ObjectVersion
	for v, err := range s.ListVersions(ctx, key, "") {
		if err != nil {
			return nil, fmt.Errorf("list the versions of %s: %w", key, err)
		}
		if v.Key == key {
			all = append(all, v)
		}
	}
	Sort(all)
	return all, nil
}

// Sort puts the versions of one object in order, the newest first, as some servers do not list
// them. Of those of one time, in seconds, the order of the listing stays, and what is on top
// comes first.
func Sort(all []objstore.ObjectVersion) {
	slices.SortStableFunc(all, func(a, b objstore.ObjectVersion) int {
		switch {
		case a.Latest != b.Latest && a.Latest:
			return -1
		case a.Latest != b.Latest:
			return 1
		}
		return b.Stored.Compare(a.Stored)
	})
}

func hash(ctx context.Context, s objstore.Versions, v *objstore.ObjectVersion) (sum [sha256.Size]byte, err error) {
	r, err := s.GetOld(ctx, v.Key, v.ID, 0, -1)
	if err != nil {
		return sum, err
	}
	h := sha256.New()
	_, err = io.Copy(h, io.LimitReader(r, v.Size+1))
	if err := errors.Join(err, r.Close()); err != nil {
		return sum, fmt.Errorf("read a version of %s: %w", v.Key, err)
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// Get implements [objstore.Store].
func (s *store) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	v, err := s.known(ctx, key)
	if err != nil {
		return nil, err
	}
	if v == nil {
		r, err := s.Store.Get(ctx, key, offset, length)
		if !errors.Is(err, objstore.ErrNotFound) {
			return r, err
		}
		if v = s.missing(ctx, key); v == nil {
			return nil, err
		}
	}
	return s.versions.GetOld(ctx, key, v.ID, offset, length)
}

// missing looks for what is below a marker. Where that can't be known, the object is what its
// key says: missing.
func (s *store) missing(ctx context.Context, key string) *objstore.ObjectVersion {
	v, err := s.find(ctx, key)
	if err != nil {
		return nil
	}
	return v
}

// Stat implements [objstore.Store].
func (s *store) Stat(ctx context.Context, key string) (objstore.Info, error) {
	v, err := s.known(ctx, key)
	if err != nil {
		return objstore.Info{}, err
	}
	if v == nil {
		info, err := s.Store.Stat(ctx, key)
		if !errors.Is(err, objstore.ErrNotFound) {
			return info, err
		}
		if v = s.missing(ctx, key); v == nil {
			return info, err
		}
	}
	return objstore.Info{Key: key, Size: v.Size}, nil
}
