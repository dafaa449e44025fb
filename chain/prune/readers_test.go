// SPDX-License-Identifier: Apache-2.0

package prune

import (
	"bytes"
	"errors"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/view"
)

// TestViewBeside: who reads a checkpoint while it is repacked, as serve does, goes on
// with what stands in the place of what was there; when it is forgotten, that is said.
func TestViewBeside(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, 5)
	last := w.Checkpoints[4]
	c, err := view.Open(t.Context(), w.Repo, last, nil, view.Options{Cache: 1 << 20, NoAhead: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want := w.Want[4]
	read := func() error {
		got := make([]byte, len(want))
		for pos := 0; pos < len(got); pos += 64 << 10 {
			if err := c.Disks[0].ReadAt(t.Context(), got[pos:min(len(got), pos+64<<10)], int64(pos)); err != nil {
				return err
			}
		}
		if !bytes.Equal(got, want) {
			t.Error("it reads otherwise")
		}
		return nil
	}
	if err := c.Disks[0].ReadAt(t.Context(), make([]byte, 1), 0); err != nil {
		t.Fatal(err)
	}
	w.forget(t, w.Repo, 0, 1, 3)
	if r := prune(t, w.Repo, Options{packSize: 64 << 10}); r.Repack.Moves == 0 {
		t.Fatalf("nothing was repacked: %+v", r)
	}
	if err := read(); err != nil {
		t.Fatal(err)
	}
	// Who has only read the manifest when it comes.
	late, err := view.Open(t.Context(), w.Repo, last, nil, view.Options{NoAhead: true})
	if err != nil {
		t.Fatal(err)
	}
	if late.Manifest.Revision <= last.Revision {
		t.Errorf("open is revision %d", late.Manifest.Revision)
	}
	late.Close()
	w.forget(t, w.Repo, 2, 4)
	prune(t, w.Repo, Options{})
	if _, err := view.Open(t.Context(), w.Repo, last, nil, view.Options{NoAhead: true}); !errors.As(err, new(*chain.GoneError)) || archive.IsDamage(err) {
		t.Errorf("open, forgotten: %v", err)
	}
	if err := read(); !errors.As(err, new(*chain.GoneError)) || archive.IsDamage(err) {
		t.Errorf("forgotten: %v", err)
	}
}
