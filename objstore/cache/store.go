// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"context"
	"io"
	"path/filepath"
	"sync"

	"github.com/imgbackup/imgbackup/objstore"
)

// Kind is how an object may be remembered.
type Kind int

// The kinds of objects.
const (
	Never    Kind = iota // not at all
	Digested             // never changes, and its name is the SHA-256 of its bytes
	Own                  // as Digested, and only what is written here is kept
	Tagged               // may be replaced, and is small; the store's entity tag tells
)

// Options say what of a store is remembered.
type Options struct {
	ID    string // of the repository
	Place string // by which the store is named
	// Kind says how an object is to be treated, by its key; with Digested and Own, which
	// SHA-256 its bytes have.
	Kind func(key string) (Kind, [32]byte)
	// Plain: keys are no secret, so that they may be asked for before the repository is known.
	Plain bool
	Ahead *Ahead // what was; nil: nothing
}

// New returns a store that remembers s in the folder.
func New(s objstore.Store, d *Dir, o Options) objstore.Store {
	n := &store{
		next: s, dir: d, kind: o.Kind, folder: d.repository(o.ID, o.Place),
		proven: make(map[[32]byte]fileID), missed: make(map[string]int64),
	}
	sweep(filepath.Join(n.folder, tempFolder)) // who finds all that it wants writes nothing, and sweeps nothing else
	n.isPlain(o.Place, o.Plain)
	if o.Ahead != nil && o.Plain && o.Ahead.id == o.ID {
		n.ahead = o.Ahead
	}
	return n
}

type store struct {
	next   objstore.Store
	dir    *Dir
	kind   func(key string) (Kind, [32]byte)
	folder string // of the repository

	mu     sync.Mutex
	proven map[[32]byte]fileID // by this program
	missed map[string]int64    // bytes that were read in parts, of objects by their keys
	ahead  *Ahead              // a listing that was begun; nil: none, or it was used
}

var (
	_ objstore.Store       = (*store)(nil)
	_ objstore.Remembering = (*store)(nil)
)

// Unwrap returns the store that is remembered.
func (s *store) Unwrap() objstore.Store { return s.next }

// Direct implements objstore.Remembering.
func (s *store) Direct() objstore.Store { return s.next }

// Get implements objstore.Store.
func (s *store) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	kind, name := s.kind(key)
	switch kind {
	case Digested:
		return s.getDigested(ctx, key, name, offset, length)
	case Own:
		return s.getOwn(ctx, key, name, offset, length)
	case Tagged:
		r, err := s.next.Get(ctx, key, offset, length)
		if err != nil || offset != 0 || length >= 0 {
			return r, err
		}
		return s.keepTagged(key, r), nil
	}
	return s.next.Get(ctx, key, offset, length)
}

// Put implements objstore.Store. What never changes is kept as it is stored.
func (s *store) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	err := s.next.Put(ctx, key, body, o)
	if kind, name := s.kind(key); err == nil && (kind == Digested || kind == Own) {
		s.keepBody(name, body)
	}
	return err
}

// Stat implements objstore.Store.
func (s *store) Stat(ctx context.Context, key string) (objstore.Info, error) {
	return s.next.Stat(ctx, key)
}

// Delete implements objstore.Store.
func (s *store) Delete(ctx context.Context, key string) error {
	s.forget(key)
	return s.next.Delete(ctx, key)
}
