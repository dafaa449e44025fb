// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"errors"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/objstore/objstoretest"
)

func everything(string) bool { return true }

// TestEmptyListing: only a listing that shows what is certainly there can show that
// there is nothing else.
func TestEmptyListing(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	for _, err := range emptyListings(t, r) {
		if err != nil {
			t.Errorf("nothing is there: %v", err)
		}
	}
	commit(t, r, r.sample("web", "one"))
	if names, err := r.Checkpoints(t.Context(), "db"); err != nil || len(names) != 0 {
		t.Errorf("another domain's: %v, %v", names, err)
	}
	var listing *ListingError
	for _, err := range emptyListings(t, r.with(&objstoretest.Hiding{Store: r.Store, Hidden: everything})) {
		if !errors.As(err, &listing) || listing.Object != ConfigKey {
			t.Errorf("all is hidden: %v", err)
		}
	}
	// The first list is the one that is empty.
	faulty := objstoretest.NewFaulty(t, r.Store, objstoretest.Fault{Op: objstoretest.List, Prefix: ConfigKey, Err: errOutage})
	if _, err := r.with(faulty).Checkpoints(t.Context(), "db"); !errors.Is(err, errOutage) {
		t.Errorf("in an outage: %v", err)
	}
	if err := r.Store.Delete(t.Context(), ConfigKey); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Checkpoints(t.Context(), "db"); !errors.Is(err, ErrNotRepository) {
		t.Errorf("the repository is gone: %v", err)
	}
}

// emptyListings returns what is told of domains and of a domain's checkpoints when
// nothing is listed.
func emptyListings(t *testing.T, r *Repository) []error {
	t.Helper()
	domains, derr := r.Domains(t.Context())
	names, nerr := r.Checkpoints(t.Context(), "web")
	ms, _, merr := r.Manifests(t.Context(), "web")
	if len(domains)+len(names)+len(ms) != 0 {
		t.Errorf("%q, %q, %v", domains, names, ms)
	}
	return []error{derr, nerr, merr}
}

func TestCheckListed(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	m := r.sample("web", "one")
	commit(t, r, m)
	ours := func(s *Manifest) bool { return s.UUID == m.UUID }
	another := func(*Manifest) bool { return false }
	hiding := r.with(&objstoretest.Hiding{Store: r.Store, Hidden: func(key string) bool { return strings.Contains(key, "/one.json") }})
	var listing *ListingError
	for name, err := range map[string]error{
		"listed by now":   r.CheckListed(t.Context(), "web", "one", ours),
		"not there":       hiding.CheckListed(t.Context(), "web", "two", ours),
		"another of it":   hiding.CheckListed(t.Context(), "web", "one", another),
		"another parent":  hiding.CheckParents(t.Context(), "web", nil, []CheckpointRef{{"one", NewUUID()}, {"two", NewUUID()}}),
		"a listed parent": hiding.CheckParents(t.Context(), "web", []string{"one"}, []CheckpointRef{*m.Ref()}),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, err := range map[string]error{
		"hidden":          hiding.CheckListed(t.Context(), "web", "one", ours),
		"a hidden parent": hiding.CheckParents(t.Context(), "web", []string{"two"}, []CheckpointRef{*m.Ref()}),
	} {
		if !errors.As(err, &listing) || listing.Object != ManifestKey("web", "one") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseBitmapName(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"one", "a.b", "x.0123456789abcdef"} {
		if got, ok := ParseBitmapName(BitmapName(name, NewUUID())); !ok || got != name {
			t.Errorf("%s: %s, %v", name, got, ok)
		}
	}
	for _, bad := range []string{"", "one", ".0123456789abcdef", "one.0123456789ABCDEF", "one.0123456789abcde", "a b.0123456789abcdef", "one-0123456789abcdef"} {
		if got, ok := ParseBitmapName(bad); ok {
			t.Errorf("%q is %q's", bad, got)
		}
	}
}
