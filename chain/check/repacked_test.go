// SPDX-License-Identifier: Apache-2.0

package check_test

import (
	"context"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/chain/check"
	"github.com/imgbackup/imgbackup/objstore"
)

type meddling struct {
	objstore.Store
	once sync.Once
	do   func()
}

func (m *meddling) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if strings.HasPrefix(key, "maps/") {
		m.once.Do(m.do)
	}
	return m.Store.Get(ctx, key, offset, length)
}

// TestCheckRepacked: what a prune repacks or somebody forgets while it is checked is no
// damage.
func TestCheckRepacked(t *testing.T) {
	t.Parallel()
	for _, forgotten := range []bool{false, true} {
		h := chaintest.NewHistory(t)
		content := make([]byte, 2<<20)
		rand.NewChaCha8([32]byte{4}).Read(content)
		h.Commit(content, true, nil)
		met := false
		store := &meddling{Store: h.Store, do: func() {
			met = true
			h.Repack(0)
			if !forgotten {
				return
			}
			m, err := h.Repo.Manifest(t.Context(), "web", h.Checkpoints[0].Checkpoint)
			if err == nil {
				err = h.Repo.Forget(t.Context(), m)
			}
			if err != nil {
				t.Error(err)
			}
			h.Prune()
		}}
		report, err := check.Run(t.Context(), &chain.Repository{Store: store, Config: h.Repo.Config}, check.Options{ReadData: true})
		if err != nil || !met || len(report.Findings) > 0 {
			t.Errorf("forgotten %v: %+v, %v, met %v", forgotten, report, err, met)
		}
	}
}
