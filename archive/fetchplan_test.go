// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"testing"

	"pgregory.net/rapid"
)

// TestPlanAsksTwiceAtMost: whatever is wanted of some packs, each is asked for at
// most twice, no byte twice, and every entry lies in the request that it is in.
func TestPlanAsksTwiceAtMost(t *testing.T) {
	t.Parallel()
	twice := false
	rapid.Check(t, func(t *rapid.T) {
		var packs []Ref
		for i := range rapid.IntRange(1, 6).Draw(t, "packs") {
			packs = append(packs, Ref{Name: Digest{byte(i + 1)}, Length: 40 << 20})
		}
		entries := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Entry {
			// Frames of a pack do not overlap.
			slot := rapid.Int64Range(0, 39).Draw(t, "slot")
			return Entry{
				Pack: rapid.SampledFrom(packs).Draw(t, "pack"), FrameOffset: slot << 20, FrameLength: 1<<20 - 100<<10,
				Length: 1, Zero: rapid.IntRange(0, 9).Draw(t, "zero") == 0,
			}
		}), 0, 120).Draw(t, "entries")
		f := &Fetcher{frames: make(chan []byte, rapid.IntRange(1, 8).Draw(t, "requests"))}
		requests, err := f.plan(entries)
		if err != nil {
			t.Fatal(err)
		}
		asked := make(map[Ref]int)
		until := make(map[Ref]int64)
		var used []int
		for _, r := range requests {
			pack := entries[r.uses[0]].Pack
			if asked[pack]++; asked[pack] > 2 || r.offset < until[pack] {
				t.Fatalf("pack %s: request %d is for bytes from %d on, after %d", pack.Name, asked[pack], r.offset, until[pack])
			}
			twice = twice || asked[pack] == 2
			until[pack] = r.end
			for _, i := range r.uses {
				if e := &entries[i]; e.Pack != pack || e.FrameOffset < r.offset || e.frameEnd() > r.end {
					t.Fatalf("entry %+v is not in its request %+v", e, r)
				}
			}
			used = append(used, r.uses...)
		}
		seen := make(map[int]bool)
		for _, i := range used {
			seen[i] = true
		}
		for i := range entries {
			if seen[i] == entries[i].Zero {
				t.Fatalf("entry %d: asked for is %v, zero is %v", i, seen[i], entries[i].Zero)
			}
		}
		if len(used) != len(seen) {
			t.Fatal("an entry is asked for twice")
		}
	})
	if !twice {
		t.Error("no pack was ever asked for twice")
	}
}
