// SPDX-License-Identifier: Apache-2.0

package check_test

import (
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/check"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
)

// A check waits for a far store as often for many domains as for one, also where something was
// forgotten of each; and not often.
func TestDomainsCostNoRoundTrips(t *testing.T) {
	t.Parallel()
	trips := func(domains int) (n int) {
		r := newRepository(t)
		for i := range domains {
			domain := fmt.Sprintf("vm%d", i)
			m := backup(t, r, domain, "one", 1<<20, nil, piece{0, random(byte(i), 5000)})
			forgotten := *m
			forgotten.Checkpoint, forgotten.UUID = "forgotten", chain.NewUUID()
			forgotten.Disks = []chain.Disk{{Name: "vda", Bitmap: chain.BitmapName("forgotten", forgotten.UUID), Size: 1 << 20}}
			if err := r.Remember(t.Context(), domain, []*chain.Manifest{&forgotten}, []*chain.Manifest{m}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Test(t, func(t *testing.T) {
			far := objstoretest.NewFar(r.Store)
			report, err := check.Run(t.Context(), with(r, far), check.Options{ReadData: true, Workers: 32})
			if err != nil || len(report.Findings) != 0 || report.Checkpoints != domains {
				t.Errorf("%+v, %v", report, err)
			}
			n = far.Elapsed()
		})
		return n
	}
	one, many := trips(1), trips(12)
	if one == 0 || one > 17 || many > one {
		t.Errorf("%d round trips for one domain, %d for twelve", one, many)
	}
}
