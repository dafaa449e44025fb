// SPDX-License-Identifier: Apache-2.0

package chaintest

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/internal/zero"
)

// Device is what can be read from anywhere.
type Device interface {
	ReadAt(ctx context.Context, p []byte, off int64) error
}

// VerifyReads reads d from several places at once, and wants to find want there.
func VerifyReads(t TB, r *rand.Rand, d Device, want []byte) {
	t.Helper()
	size := int64(len(want))
	var wg sync.WaitGroup
	for range 8 {
		off := r.Int64N(size)
		n := 1 + r.Int64N(min(1<<20, size-off))
		wg.Go(func() {
			p := make([]byte, n)
			if err := d.ReadAt(context.Background(), p, off); err != nil || !bytes.Equal(p, want[off:off+n]) {
				t.Errorf("%d bytes at %d: %v", n, off, err)
			}
		})
	}
	wg.Wait()
}

// VerifyZeros wants to find zeros in want wherever a device says that it has them.
func VerifyZeros(t TB, zeros bitmapstore.Runs, want []byte) {
	t.Helper()
	pos := int64(0)
	for run, err := range zeros {
		if err != nil || run.Start < pos || run.End <= run.Start || run.End > int64(len(want)) {
			t.Fatalf("run %v after %d: %v", run, pos, err)
		}
		pos = run.End
		if !zero.Is(want[run.Start:run.End]) {
			t.Fatalf("%v has data", run)
		}
	}
}
