// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"math/rand/v2"
	"strings"
	"testing"
)

// What is made of any ranges is valid, and covers what they cover.
func TestLosses(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		size := 1 + random.Int64N(200)
		var in []Lost
		lost := make([]bool, size)
		for range random.IntN(12) {
			l := Lost{Offset: random.Int64N(size), Length: 1 + random.Int64N(size/4+1), Reason: []string{"a", "b"}[random.IntN(2)]}
			in = append(in, l)
			for i := l.Offset; i < min(l.End(), size); i++ {
				lost[i] = true
			}
		}
		d := Disk{Size: size, Lost: Losses(in, size)}
		var c checker
		if d.validateLost(&c, KindArchive); c.err != nil {
			t.Fatalf("%+v: %v", d.Lost, c.err)
		}
		runs, err := d.LostRuns().Collect()
		if err != nil {
			t.Fatal(err)
		}
		for _, run := range runs {
			for i := run.Start; i < run.End; i++ {
				if !lost[i] {
					t.Fatalf("%+v gives %+v: %d is not lost", in, d.Lost, i)
				}
				lost[i] = false
			}
		}
		for i, is := range lost {
			if is {
				t.Fatalf("%+v gives %+v: %d is missing", in, d.Lost, i)
			}
		}
	}
}

// Too many ranges are joined where they lie closest, and none is left out.
func TestManyLosses(t *testing.T) {
	t.Parallel()
	var in []Lost
	var at int64
	for i := range 3 * MaxLost {
		in = append(in, Lost{Offset: at, Length: 1, Reason: strings.Repeat("x", 300)})
		at += 3
		if i%6 == 5 {
			at += 1 << 20
		}
	}
	out := Losses(in, at)
	if len(out) > MaxLost || len(out) < MaxLost/3 {
		t.Fatalf("%d ranges", len(out))
	}
	next := 0
	for _, l := range in {
		for out[next].End() <= l.Offset {
			next++
		}
		if o := out[next]; o.Offset > l.Offset || o.End() < l.End() || o.Length > 1<<20 || len(o.Reason) > MaxLostReason {
			t.Fatalf("%+v does not cover %+v", o, l)
		}
	}
}

func TestLostIsValidated(t *testing.T) {
	t.Parallel()
	for name, lost := range map[string][]Lost{
		"empty":       {{Offset: 0, Length: 0}},
		"overlapping": {{Offset: 0, Length: 10}, {Offset: 9, Length: 1}},
		"unsorted":    {{Offset: 10, Length: 1}, {Offset: 0, Length: 1}},
		"outside":     {{Offset: 90, Length: 11}},
		"overflowing": {{Offset: 90, Length: 1<<63 - 1}},
		"negative":    {{Offset: -1, Length: 5}},
		"long reason": {{Offset: 0, Length: 5, Reason: strings.Repeat("x", 256)}},
	} {
		var c checker
		d := Disk{Size: 100, Lost: lost}
		if d.validateLost(&c, KindArchive); c.err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	var c checker
	d := Disk{Size: 100, Lost: []Lost{{Length: 1}}}
	if d.validateLost(&c, KindCheckpoint); c.err == nil {
		t.Error("a checkpoint without data has lost something")
	}
}
