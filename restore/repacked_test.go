// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
)

// TestRepacked: a restore that leaves out what is damaged does not take for damage what a
// prune has repacked since the manifest was read, or what was forgotten.
func TestRepacked(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	h := chaintest.NewHistory(t)
	content := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{3}).Read(content)
	h.Commit(content, true, nil)
	read := h.Checkpoints[0]
	h.Repack(0)
	path := filepath.Join(t.TempDir(), "vda.raw")
	try := func(m *chain.Manifest) error {
		_, err := Run(ctx, h.Repo, m, []Target{{Disk: "vda", Path: path, Format: "raw"}}, Options{SkipDamaged: true})
		return err
	}
	newer, err := h.Repo.Reread(ctx, read, try(read))
	if newer == nil {
		t.Fatalf("it was repacked: %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something appeared: %v", err)
	}
	if err := try(newer); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
		t.Errorf("other bytes (%v)", err)
	}
	if err := errors.Join(os.Remove(path), chaintest.Forget(ctx, h.Repo, newer)); err != nil {
		t.Fatal(err)
	}
	h.Prune()
	if err := try(newer); !errors.As(err, new(*chain.GoneError)) {
		t.Errorf("it was forgotten: %v", err)
	}
}
