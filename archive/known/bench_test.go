// SPDX-License-Identifier: Apache-2.0

package known

import (
	"fmt"
	"testing"
)

// BenchmarkFind looks chunks up in tables that are in the page cache: half of them known,
// as far apart as they can be.
func BenchmarkFind(b *testing.B) {
	for _, n := range []int{1 << 18, 1 << 21, 1 << 23} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			dir := b.TempDir()
			var list []index
			const each = 1 << 16
			for i := range n / each {
				list = append(list, newIndex(i, i*each, each))
			}
			table := open(b, dir)
			update(b, table, list)
			chunks := make([]Digest, 1<<16)
			for i := range chunks {
				chunks[i] = digest("chunk", (i*7919)%(2*n))
			}
			b.ResetTimer()
			for i := range b.N {
				table.Find(&chunks[i%len(chunks)], func(Place) bool { return true })
			}
			b.ReportMetric(float64(len(table.runs)), "runs")
		})
	}
}
