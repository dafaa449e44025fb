// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"slices"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
)

// The last packs that a far store gets are small, in the order in which they were filled; a
// small backup, and one to a store that is near, has as few as ever.
func TestLastPacksAreSmall(t *testing.T) {
	t.Parallel()
	const size = 4 << 20
	for _, c := range []struct {
		connections, mib int
		encrypted        bool
		packs            int
		last             int64
	}{
		{0, 18, false, 6, size},
		{16, 1, false, 1, size},
		{16, 36, false, 24, size/endShrinks + GridSize},
		{16, 36, true, 24, size/endShrinks + GridSize},
	} {
		disk := random(7, c.mib<<20)
		var store objstore.Store = worth{objstore.NewMem(), c.connections}
		if c.encrypted {
			store = Encrypted(store, testKeys(t))
		}
		w := must2(NewWriter(t.Context(), store, WriterOptions{PackSize: size, Workers: 2}))(t)
		w.Expect(int64(len(disk)))
		// A hole of three times its data before it, of which nothing is read.
		hole := 3 * int64(len(disk))
		disk = append(make([]byte, hole), disk...)
		m := w.NewMap("vda", int64(len(disk)), true)
		if err := m.Zero(0, hole); err != nil {
			t.Fatal(err)
		}
		if err := addSpans(t.Context(), m, disk, span{hole, int64(len(disk)) - hole}); err != nil {
			t.Fatal(err)
		}
		refs, _, err := w.Finish(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		checkRestore(t, store, disk, refs[0])
		var lengths []int64
		for _, pack := range must2(OpenMap(t.Context(), store, refs[0], 0))(t).Packs() {
			lengths = append(lengths, pack.Length)
		}
		slices.Sort(lengths)
		if n := len(lengths); n > c.packs || lengths[0] > c.last || lengths[n-1] > size || n > 1 && lengths[n-1] < size-GridSize {
			t.Errorf("%+v: packs of %d bytes", c, lengths)
		}
	}
}
