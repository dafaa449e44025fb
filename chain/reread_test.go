// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"errors"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
)

// TestReread: what a reader misses is damage only where the checkpoint is as it was.
func TestReread(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	commit(t, r, r.sample("web", "one"))
	m, err := r.Manifest(t.Context(), "web", "one")
	if err != nil {
		t.Fatal(err)
	}
	missing := archive.Damaged("packs/x", objstore.MarkNotFound(errors.New("gone")))
	other := archive.Damaged("packs/x", errors.New("its bytes are wrong"))
	if newer, err := r.Reread(t.Context(), m, missing); newer != nil || !archive.IsDamage(err) {
		t.Errorf("unchanged: %v, %v", newer, err)
	}
	next := *m
	if err := r.Revise(t.Context(), &next); err != nil {
		t.Fatal(err)
	}
	if newer, err := r.Reread(t.Context(), m, missing); newer == nil || newer.Revision != m.Revision+1 || err == nil {
		t.Errorf("revised: %v, %v", newer, err)
	}
	if newer, err := r.Reread(t.Context(), m, other); newer != nil || err != other {
		t.Errorf("wrong bytes: %v, %v", newer, err)
	}
	if err := forgetOne(t.Context(), r, &next); err != nil {
		t.Fatal(err)
	}
	if newer, err := r.Reread(t.Context(), m, missing); newer != nil || !errors.As(err, new(*GoneError)) || archive.IsDamage(err) {
		t.Errorf("forgotten: %v, %v", newer, err)
	}
}
