// SPDX-License-Identifier: Apache-2.0

package hidden

import (
	"context"
	"errors"
	"io"
	"iter"
	"strings"

	"github.com/imgbackup/imgbackup/objstore"
)

// Learn returns the key, with names, that an object says it belongs under, of what is stored
// under a key; "": it does not tell. It need not be proven.
type Learn func(stored string, data []byte) (key string)

// Store returns s by keys with names. Where listings show what was not met, learn is asked.
func Store(s objstore.Store, n *Names, learn Learn) objstore.Store {
	h := &store{next: s, names: n, learnKey: learn, kept: newKept()}
	if r, ok := objstore.As[objstore.Remembering](s); ok {
		return &remembering{store: h, next: r}
	}
	return h
}

// IsStore reports whether a store is one that hides names, or wraps one.
func IsStore(s objstore.Store) bool {
	_, ok := objstore.As[hiding](s)
	return ok
}

type hiding interface{ hidesNames() }

type store struct {
	next     objstore.Store
	names    *Names
	learnKey Learn
	kept     *kept
}

var (
	_ objstore.Store       = (*store)(nil)
	_ objstore.Renaming    = (*store)(nil)
	_ objstore.Remembering = (*remembering)(nil)
)

func (s *store) hidesNames() {}

// Unwrap returns the store that has the digests.
func (s *store) Unwrap() objstore.Store { return s.next }

// Put implements [objstore.Store].
func (s *store) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	return s.next.Put(ctx, s.names.Stored(key), body, o)
}

// Get implements [objstore.Store].
func (s *store) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	return s.next.Get(ctx, s.names.Stored(key), offset, length)
}

// Stat implements [objstore.Store].
func (s *store) Stat(ctx context.Context, key string) (objstore.Info, error) {
	info, err := s.next.Stat(ctx, s.names.Stored(key))
	if err == nil {
		info.Key = key
	}
	return info, err
}

// Delete implements [objstore.Store].
func (s *store) Delete(ctx context.Context, key string) error {
	return s.next.Delete(ctx, s.names.Stored(key))
}

// List implements [objstore.Store]. What is listed in a folder whose keys have names is read
// where its name was not met, side by side, as soon as the folder has been listed.
func (s *store) List(ctx context.Context, prefix string) iter.Seq2[objstore.Info, error] {
	return listed(prefix, s.names, func(stored string) iter.Seq2[objstore.Info, error] { return s.next.List(ctx, stored) },
		infoKey, func(folder string, infos []objstore.Info) error {
			var all []unmet
			for _, info := range infos {
				all = append(all, unmet{info.Key, func(ctx context.Context) (string, error) { return s.keyOf(ctx, info) }})
			}
			return s.meet(ctx, folder, all)
		})
}

func infoKey(i *objstore.Info) *string { return &i.Key }

// ReadListed reads what a listing has described: it may just have been read for its name.
func (s *store) ReadListed(ctx context.Context, info objstore.Info, limit int64) ([]byte, error) {
	info.Key = s.names.Stored(info.Key)
	if data, ok := s.kept.take(info); ok && int64(len(data)) <= limit {
		return data, nil
	}
	return objstore.ReadListed(ctx, s.next, info, limit)
}

// keyOf is the key that an object tells, as a listing of stored keys has described it; "": it
// does not, and nothing that it lies on top of does. It is kept for who is about to read it.
func (s *store) keyOf(ctx context.Context, info objstore.Info) (string, error) {
	data, err := objstore.ReadListed(ctx, s.next, info, objstore.MaxOld)
	switch {
	case errors.Is(err, objstore.ErrNotFound):
		return "", nil
	case errors.Is(err, objstore.ErrTooLarge):
	case err != nil:
		return "", err
	default:
		s.kept.put(info, data)
		if key := s.learnKey(info.Key, data); key != "" {
			return key, nil
		}
	}
	return s.keyBelow(ctx, info.Key)
}

// remembering is over a store that remembers.
type remembering struct {
	*store
	next objstore.Remembering
}

// Direct implements [objstore.Remembering].
func (r *remembering) Direct() objstore.Store {
	return &store{next: r.next.Direct(), names: r.names, learnKey: r.learnKey, kept: newKept()}
}

// listed is a listing with names, of one by stored keys: of objects, or of their versions. The
// objects of a folder whose keys have names come together, sorted by the keys that they have
// then; meet is called with them before.
func listed[T any](prefix string, n *Names, list func(stored string) iter.Seq2[T, error], key func(*T) *string, meet func(folder string, all []T) error) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		stored, err := n.storedPrefix(prefix)
		if err != nil {
			yield(none, err)
			return
		}
		group := group[T]{names: n, prefix: prefix, key: key, meet: meet}
		for one, err := range list(stored) {
			if err != nil {
				yield(none, err)
				return
			}
			if in := folder(*key(&one)); in != group.folder && !group.end(in, yield) {
				return
			}
			switch {
			case group.folder == "" && strings.HasPrefix(*key(&one), prefix):
				if !yield(one, nil) {
					return
				}
			case group.folder != "" && isStored(*key(&one)):
				group.all = append(group.all, one)
			}
		}
		group.end("", yield)
	}
}
