// SPDX-License-Identifier: Apache-2.0

package bitmapstore

import (
	"errors"
	"iter"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// The model of a set is one bool per byte of a small disk.
const modelSize = 300

func genModel(size int) *rapid.Generator[[]bool] {
	return rapid.Custom(func(t *rapid.T) []bool {
		set := make([]bool, size)
		for range rapid.IntRange(0, 12).Draw(t, "runs") {
			start := rapid.IntRange(0, size-1).Draw(t, "start")
			for i := start; i < min(start+rapid.IntRange(1, 40).Draw(t, "length"), size); i++ {
				set[i] = true
			}
		}
		return set
	})
}

// modelRuns is the normal form of a model.
func modelRuns(set []bool) []Run {
	var runs []Run
	for i, on := range set {
		switch {
		case !on:
		case i > 0 && set[i-1]:
			runs[len(runs)-1].End++
		default:
			runs = append(runs, Run{int64(i), int64(i) + 1})
		}
	}
	return runs
}

func wantRuns(t rapid.TB, what string, got Runs, model []bool) {
	t.Helper()
	want := modelRuns(model)
	for round := range 2 { // a set can be iterated again
		runs, err := got.Collect()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if !slices.Equal(runs, want) {
			t.Fatalf("%s, iteration %d: got %v, want %v", what, round, runs, want)
		}
	}
	// Stopping early gives a prefix and no panic.
	if len(want) > 0 {
		stop := len(want)/2 + 1
		var runs []Run
		for r, err := range got {
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			runs = append(runs, r)
			if len(runs) == stop {
				break
			}
		}
		if !slices.Equal(runs, want[:stop]) {
			t.Fatalf("%s, stopped early: got %v, want %v", what, runs, want[:stop])
		}
	}
}

func combine(sets [][]bool, f func(bits []bool) bool) []bool {
	out := make([]bool, len(sets[0]))
	for i := range out {
		column := make([]bool, len(sets))
		for j := range sets {
			column[j] = sets[j][i]
		}
		out[i] = f(column)
	}
	return out
}

func TestSetsAgainstModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b := genModel(modelSize).Draw(t, "a"), genModel(modelSize).Draw(t, "b")
		x, y := Of(modelRuns(a)...), Of(modelRuns(b)...)
		pair := [][]bool{a, b}
		wantRuns(t, "a", x, a)
		wantRuns(t, "a ∪ b", Union(x, y), combine(pair, func(c []bool) bool { return c[0] || c[1] }))
		wantRuns(t, "a ∩ b", Intersect(x, y), combine(pair, func(c []bool) bool { return c[0] && c[1] }))
		wantRuns(t, "a − b", Subtract(x, y), combine(pair, func(c []bool) bool { return c[0] && !c[1] }))

		equal, err := Equal(x, y)
		if want := slices.Equal(a, b); err != nil || equal != want {
			t.Fatalf("Equal: %v, %v, want %v", equal, err, want)
		}
		if equal, err := Equal(Union(x, y), Union(y, x)); err != nil || !equal {
			t.Fatalf("Equal of the same set: %v, %v", equal, err)
		}
		contains, err := Contains(x, y)
		if want := !slices.Contains(combine(pair, func(c []bool) bool { return c[1] && !c[0] }), true); err != nil || contains != want {
			t.Fatalf("Contains: %v, %v, want %v", contains, err, want)
		}
		for _, part := range []Runs{x, y, Intersect(x, y)} {
			if ok, err := Contains(Union(x, y), part); err != nil || !ok {
				t.Fatalf("the union must contain its parts: %v, %v", ok, err)
			}
		}
		var want int64
		for _, on := range a {
			if on {
				want++
			}
		}
		if got, err := x.Bytes(); err != nil || got != want {
			t.Fatalf("Bytes: %d, %v, want %d", got, err, want)
		}
	})
}

func TestUnionOfManyAgainstModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		models := rapid.SliceOfN(genModel(modelSize), 1, 9).Draw(t, "sets")
		sets := make([]Runs, len(models))
		for i, m := range models {
			sets[i] = Of(modelRuns(m)...)
		}
		wantRuns(t, "union", Union(sets...), combine(models, func(c []bool) bool { return slices.Contains(c, true) }))
	})
}

func TestClipAndRoundAgainstModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a := genModel(modelSize).Draw(t, "a")
		size := rapid.IntRange(0, modelSize+20).Draw(t, "size")
		granularity := rapid.IntRange(1, modelSize*2).Draw(t, "granularity")
		x := Of(modelRuns(a)...)

		clipped := slices.Clone(a)
		for i := size; i < len(clipped); i++ {
			clipped[i] = false
		}
		wantRuns(t, "clip", x.Clip(int64(size)), clipped)

		rounded := make([]bool, size)
		for i, on := range clipped {
			if on {
				for j := i / granularity * granularity; j < min((i/granularity+1)*granularity, size); j++ {
					rounded[j] = true
				}
			}
		}
		wantRuns(t, "round", x.Round(int64(granularity), int64(size)), rounded)
	})
}

func TestOfNormalises(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		model := make([]bool, 100)
		var runs []Run
		for range rapid.IntRange(0, 20).Draw(t, "runs") {
			r := Run{rapid.Int64Range(-5, 99).Draw(t, "start"), rapid.Int64Range(-5, 100).Draw(t, "end")}
			runs = append(runs, r)
			for i := max(r.Start, 0); i < r.End; i++ {
				model[i] = true
			}
		}
		given := slices.Clone(runs)
		wantRuns(t, "Of", Of(runs...), model)
		if !slices.Equal(given, runs) {
			t.Fatal("Of changed its argument")
		}
	})
}

func TestFromBitsAgainstModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		granularity := rapid.Int64Range(1, 9).Draw(t, "granularity")
		size := rapid.Int64Range(0, 900*granularity).Draw(t, "size")
		numBits := (size + granularity - 1) / granularity
		model := make([]bool, size)
		var pages []Page
		for bit := int64(0); bit < numBits; {
			n := rapid.Int64Range(1, 300).Draw(t, "bits")
			p := Page{FirstBit: bit, NumBits: n}
			on := func(int64) bool { return false }
			switch rapid.IntRange(0, 3).Draw(t, "kind") {
			case 0: // a gap: no page at all
				bit += n
				continue
			case 1:
			case 2:
				p.Ones = true
				on = func(int64) bool { return true }
			case 3:
				p.Bits = genBits(int(n+7)/8).Draw(t, "data")
				on = func(i int64) bool { return p.Bits[i/8]>>(i%8)&1 != 0 }
			}
			for i := range n { // the last page reaches beyond the disk: those bits do not count
				if on(i) {
					for j := (bit + i) * granularity; j < min((bit+i+1)*granularity, size); j++ {
						model[j] = true
					}
				}
			}
			pages = append(pages, p)
			bit += n
		}
		wantRuns(t, "FromBits", FromBits(granularity, size, sequence(pages, nil)), model)
	})
}

// genBits makes bytes in which long stretches of equal bits are common.
func genBits(n int) *rapid.Generator[[]byte] {
	return rapid.Custom(func(t *rapid.T) []byte {
		out := make([]byte, 0, n)
		for len(out) < n {
			b := rapid.SampledFrom([]byte{0, 0, 0xff, 0xff, 1, 0x80, 0x55, 0xf0, 0x3c, 0xa7}).Draw(t, "byte")
			for range rapid.IntRange(1, 20).Draw(t, "repeat") {
				out = append(out, b)
			}
		}
		return out[:n]
	})
}

func sequence(pages []Page, err error) iter.Seq2[Page, error] {
	return func(yield func(Page, error) bool) {
		for _, p := range pages {
			if !yield(p, nil) {
				return
			}
		}
		if err != nil {
			yield(Page{}, err)
		}
	}
}

var errTest = errors.New("broken source")

// broken yields runs and then fails.
func broken(runs ...Run) Runs {
	return func(yield func(Run, error) bool) {
		for _, r := range runs {
			if !yield(r, nil) {
				return
			}
		}
		yield(Run{}, errTest)
	}
}
