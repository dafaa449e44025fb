// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestCheckTag(t *testing.T) {
	t.Parallel()
	for _, tag := range []string{"keep", "a", "env:prod", "ticket=12", "2026/11", "x@y+z", strings.Repeat("a", MaxTag)} {
		if err := CheckTag(tag); err != nil {
			t.Error(err)
		}
	}
	for _, tag := range []string{"", "a b", "a,b", "ü", "a\n", strings.Repeat("a", MaxTag+1)} {
		if err := CheckTag(tag); err == nil {
			t.Errorf("%q is a tag", tag)
		}
	}
	m := sample("web", "c1")
	for _, tags := range [][]string{{"b", "a"}, {"a", "a"}, {""}} {
		if m.Tags = tags; m.Validate() == nil {
			t.Errorf("%q are valid", tags)
		}
	}
	if m.Tags = []string{"a", "b"}; m.Validate() != nil {
		t.Error(m.Validate())
	}
}

// TestRetag: tags change by the next revision, only where anything changes, and on top of
// what others have made of the checkpoint meanwhile.
func TestRetag(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	commit(t, r, r.sample("web", "c1"))
	step := func(r *Repository, add, remove []string, revision int, want ...string) {
		t.Helper()
		next, err := r.Retag(t.Context(), "web", "c1", add, remove)
		if err != nil {
			t.Fatal(err)
		}
		stands, err := r.Manifest(t.Context(), "web", "c1")
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(stands.Tags, want) || !slices.Equal(next.Tags, want) || stands.Revision != revision || next.Revision != revision {
			t.Errorf("revision %d with %q stands, %d with %q was told; want %d, %q", stands.Revision, stands.Tags, next.Revision, next.Tags, revision, want)
		}
	}
	step(r, []string{"b", "a", "a"}, nil, 2, "a", "b")
	step(r, []string{"a"}, []string{"c"}, 2, "a", "b")
	step(r, []string{"c"}, []string{"a"}, 3, "b", "c")
	another := &meanwhile{Store: r.Store, do: func() { step(r, []string{"d"}, nil, 4, "b", "c", "d") }}
	step(r.with(another), nil, []string{"b", "x"}, 5, "c", "d")
	if another.do != nil {
		t.Error("nothing came between")
	}
	step(r, nil, []string{"c", "d"}, 6)

	if _, err := r.Retag(t.Context(), "web", "c1", []string{"a b"}, nil); err == nil {
		t.Error("a tag that is none was added")
	}
	forgotten := &meanwhile{Store: r.Store, do: func() {
		m, err := r.Manifest(t.Context(), "web", "c1")
		if err == nil {
			err = forgetOne(t.Context(), r, m)
		}
		if err != nil {
			t.Error(err)
		}
	}}
	var gone *GoneError
	if _, err := r.with(forgotten).Retag(t.Context(), "web", "c1", []string{"a"}, nil); !errors.As(err, &gone) {
		t.Errorf("forgotten meanwhile: %v", err)
	}
	if _, err := r.Retag(t.Context(), "web", "c1", []string{"a"}, nil); !errors.Is(err, ErrNoCheckpoint) {
		t.Errorf("forgotten before: %v", err)
	}
}
