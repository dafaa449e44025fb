// SPDX-License-Identifier: Apache-2.0

package prune

import (
	"testing"

	"github.com/imgbackup/imgbackup/archive"
)

// A prune that waited for a writer, and finds a damaged map when it goes on, leaves no mark:
// a repair begins beside none.
func TestDamageEndsTheMark(t *testing.T) {
	t.Parallel()
	w := newSmallWorld(t, 3, 5, 600<<10)
	w.forget(t, w.Repo, 0, 1, 3)
	hold, err := w.Repo.Hold(t.Context(), "backup")
	if err != nil {
		t.Fatal(err)
	}
	if r := prune(t, w.Repo, Options{}); len(r.Waiting) == 0 {
		t.Fatalf("it waits for nobody: %+v", r)
	}
	if err := hold.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	last, err := w.Repo.Manifest(t.Context(), "web", w.Checkpoints[4].Checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Store.Delete(t.Context(), archive.MapKey(last.Disks[0].Maps[0].Name)); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), w.Repo, Options{}); !archive.IsDamage(err) {
		t.Fatalf("with a map missing: %v", err)
	}
	if m, err := w.Repo.Mark(t.Context()); err != nil || m.Standing() {
		t.Fatalf("%+v, %v", m, err)
	}
	repack, err := w.Repo.BeginRepair(t.Context())
	if err == nil {
		err = repack.End(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}
