// SPDX-License-Identifier: Apache-2.0

package check_test

import (
	"math/rand/v2"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/chain/check"
)

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
		store := &chaintest.Meddling{Store: h.Store, Prefix: archive.MapPrefix, Do: func() {
			met = true
			h.Repack(0)
			if forgotten {
				h.Forget(0)
				h.Prune()
			}
		}}
		report, err := check.Run(t.Context(), &chain.Repository{Store: store, Config: h.Repo.Config}, check.Options{ReadData: true})
		if err != nil || !met || len(report.Findings) > 0 {
			t.Errorf("forgotten %v: %+v, %v, met %v", forgotten, report, err, met)
		}
	}
}
