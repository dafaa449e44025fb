// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/objstore"
)

// meddling does something before the first object of some kind is read.
type meddling struct {
	objstore.Store
	prefix string
	once   sync.Once
	do     func()
}

func (m *meddling) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if strings.HasPrefix(key, m.prefix) {
		m.once.Do(m.do)
	}
	return m.Store.Get(ctx, key, offset, length)
}

// TestCopyRepacked: what a prune of the source repacks, or somebody forgets, while it is
// copied is no damage.
func TestCopyRepacked(t *testing.T) {
	t.Parallel()
	for _, prefix := range []string{"maps/", "packs/"} {
		for _, forgotten := range []bool{false, true} {
			h := chaintest.NewHistory(t)
			content := make([]byte, 2<<20)
			rand.NewChaCha8([32]byte{4}).Read(content)
			h.Commit(content, true, nil)
			met := false
			source := &meddling{Store: h.Store, prefix: prefix, do: func() {
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
			to, err := chain.Init(t.Context(), objstore.NewMem(), chain.InitOptions{})
			if err != nil {
				t.Fatal(err)
			}
			from := &chain.Repository{Store: source, Config: h.Repo.Config}
			var notes []string
			res, err := Copy(t.Context(), from, to, Options{Note: func(msg string) { notes = append(notes, msg) }})
			if err != nil || !met {
				t.Fatalf("%s, forgotten %v: %v, met %v", prefix, forgotten, err, met)
			}
			if want := map[bool]int{false: 1, true: 0}[forgotten]; len(res.Checkpoints) != want {
				t.Errorf("%s, forgotten %v: %d checkpoints, notes %q", prefix, forgotten, len(res.Checkpoints), notes)
			}
			m, err := to.Manifest(t.Context(), "web", h.Checkpoints[0].Checkpoint)
			if (err == nil) == forgotten {
				t.Fatalf("%s, forgotten %v: %v", prefix, forgotten, err)
			}
			if !forgotten {
				if _, err := to.Needs(t.Context(), m, nil); err != nil || m.Revision != 2 {
					t.Errorf("%s: revision %d, %v", prefix, m.Revision, err)
				}
			}
		}
	}
}
