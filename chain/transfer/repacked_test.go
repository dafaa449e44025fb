// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"math/rand/v2"
	"testing"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/objstore"
)

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
			source := &chaintest.Meddling{Store: h.Store, Prefix: prefix, Do: func() {
				met = true
				h.Repack(0)
				if forgotten {
					h.Forget(0)
					h.Prune()
				}
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
