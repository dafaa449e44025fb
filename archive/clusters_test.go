// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"testing"
	"testing/synctest"

	"github.com/imgbackup/imgbackup/clustermap"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
)

// worth is a store that is worth so many requests at once.
type worth struct {
	objstore.Store
	n int
}

func (w worth) Connections() int { return w.n }

// The parts of a fingerprint do not wait for one another where the store is far away.
func TestClustersAtOnce(t *testing.T) {
	t.Parallel()
	mem := objstore.NewMem()
	var parts []*Clusters
	for i := range int64(24) {
		c, err := EncodeClusters(clustermap.Header{Unit: 65536, Units: 4}, func(yield func(clustermap.Run, error) bool) {
			yield(clustermap.Run{Kind: clustermap.Data, Count: 4, Host: (i + 1) << 20}, nil)
		}, t.TempDir(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		parts = append(parts, c)
	}
	synctest.Test(t, func(t *testing.T) {
		for _, there := range []bool{false, true} {
			far := objstoretest.NewFar(mem)
			w, err := NewWriter(t.Context(), worth{far, 12}, WriterOptions{Workers: 1})
			if err != nil {
				t.Fatal(err)
			}
			before := far.Elapsed()
			if err := w.PutAllClusters(t.Context(), parts, func(Ref) bool { return there }); err != nil {
				t.Fatal(err)
			}
			// Two groups, of which each part is at most looked for, and put.
			if n := far.Elapsed() - before; n == 0 || n > 4 {
				t.Errorf("%d round trips for %d parts (there: %v)", n, len(parts), there)
			}
			w.Abort()
		}
	})
	for _, c := range parts {
		if _, err := mem.Stat(t.Context(), ClustersKey(c.Ref.Name)); err != nil {
			t.Error(err)
		}
	}
}
