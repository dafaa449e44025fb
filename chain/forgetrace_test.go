// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"
	"io/fs"
	"testing"

	"github.com/imgbackup/imgbackup/internal/protocol"
	"github.com/imgbackup/imgbackup/objstore"
)

// beforeDelete is a store in which something happens just before a manifest is deleted.
type beforeDelete struct {
	objstore.Store
	do func(key string)
}

func (s *beforeDelete) Delete(ctx context.Context, key string) error {
	if do := s.do; do != nil && ParseKey(key).Kind == KeyManifest {
		s.do = nil
		do(key)
	}
	return s.Store.Delete(ctx, key)
}

// TestForgetRaces: between the look at a checkpoint and the request that deletes it, another
// forgets it and takes its name again, or gives it a tag. Neither is undone.
func TestForgetRaces(t *testing.T) {
	t.Parallel()
	for name, meanwhile := range map[string]func(ctx context.Context, r *Repository, m *Manifest) error{
		"a new one of that name": func(ctx context.Context, r *Repository, m *Manifest) error {
			if err := r.Under(ctx, "forget", func(h *Hold) error { return h.Forget(ctx, m) }); err != nil {
				return err
			}
			fresh := *m
			fresh.UUID, fresh.Revision = NewUUID(), 0
			return r.Under(ctx, "backup", func(h *Hold) error { return h.Commit(ctx, &fresh) })
		},
		"a tag": func(ctx context.Context, r *Repository, m *Manifest) error {
			next := *m
			next.Tags = []string{"keep"}
			return r.Revise(ctx, &next)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRepository(t)
			m := r.sample("web", "a")
			commit(t, r, m)
			ctx := protocol.WithTest(t.Context(), &protocol.Test{Pause: func(context.Context) error { return nil }})
			s := &beforeDelete{Store: r.Store}
			slow, err := Open(t.Context(), s)
			if err != nil {
				t.Fatal(err)
			}
			var refused error
			hit := false
			s.do = func(string) { hit, refused = true, meanwhile(ctx, r, m) }
			forgot := slow.Under(ctx, "forget", func(h *Hold) error { return h.Forget(ctx, m) })
			if forgot != nil || !hit {
				t.Fatalf("%v, %v", forgot, hit)
			}
			// Whoever is told that it succeeded must find it so.
			stands, err := r.Manifest(t.Context(), "web", "a")
			if refused == nil && err != nil || refused != nil && !errors.Is(err, ErrNoCheckpoint) {
				t.Errorf("the other: %v, and then %v, %v", refused, stands, err)
			}
		})
	}
}

// noDeletes is a store in which nothing may be deleted.
type noDeletes struct{ objstore.Store }

func (noDeletes) Delete(context.Context, string) error { return fs.ErrPermission }

// TestForgetTellsOfDelete: what could not be deleted is told, and the checkpoint is gone.
func TestForgetTellsOfDelete(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	m := r.sample("web", "a")
	commit(t, r, m)
	err := r.with(noDeletes{r.Store}).Under(t.Context(), "forget", func(h *Hold) error { return h.Forget(t.Context(), m) })
	if !errors.Is(err, fs.ErrPermission) {
		t.Errorf("%v", err)
	}
	if _, err := r.Manifest(t.Context(), "web", "a"); !errors.Is(err, ErrNoCheckpoint) {
		t.Errorf("%v", err)
	}
}
