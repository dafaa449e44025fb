// SPDX-License-Identifier: Apache-2.0

package view

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/imgbackup/imgbackup/chain/chaintest"
)

// Who reads a layout that was opened anew does not wait for what others still look up in the
// one before, nor gets its errors: they would be taken for damage of the new one.
func TestRenewedLayoutIsReadAfresh(t *testing.T) {
	t.Parallel()
	h := chaintest.NewHistory(t)
	content := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{12}).Read(content)
	h.Commit(content, true, nil)
	r := NewReader(t.Context(), h.Repo, Options{})
	defer r.Close()
	d, err := r.Open(t.Context(), &h.Checkpoints[0].Disks[0])
	if err != nil {
		t.Fatal(err)
	}
	ws := &d.windows
	release := make(chan struct{})
	old := ws.coming.DoChan(ws.flight(0), func() (any, error) {
		<-release
		return nil, errors.New("its map is gone")
	})
	ws.reopen = func(ctx context.Context, _ error) (*Layout, error) {
		return OpenLayout(ctx, h.Repo, &h.Checkpoints[0].Disks[0])
	}
	if err := ws.renew(t.Context(), ws.current(), errors.New("a pack is gone")); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, len(content))
	if err := d.ReadAt(t.Context(), p, 0); err != nil || !bytes.Equal(p, content) {
		t.Errorf("read anew: %v", err)
	}
	close(release)
	if got := <-old; got.Err == nil {
		t.Error("the old one was not resolved by itself")
	}
}
