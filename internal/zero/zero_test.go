// SPDX-License-Identifier: Apache-2.0

package zero_test

import (
	"testing"

	"github.com/imgbackup/imgbackup/internal/zero"
)

func TestIs(t *testing.T) {
	t.Parallel()
	b := make([]byte, 100)
	for n := range len(b) {
		if !zero.Is(b[:n]) {
			t.Errorf("%d zeros are not", n)
		}
		for i := range n {
			b[i] = 1
			if zero.Is(b[:n]) {
				t.Errorf("a one at %d of %d is not seen", i, n)
			}
			b[i] = 0
		}
	}
}

func BenchmarkIs(b *testing.B) {
	p := make([]byte, 1<<20)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		zero.Is(p)
	}
}
