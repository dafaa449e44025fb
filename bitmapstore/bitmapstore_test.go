// SPDX-License-Identifier: Apache-2.0

package bitmapstore

import (
	"errors"
	"math"
	"slices"
	"testing"
)

func TestErrorsComeThrough(t *testing.T) {
	t.Parallel()
	good := Of(Run{0, 10}, Run{20, 1000})
	bad := broken(Run{5, 30})
	sets := map[string]Runs{
		"fail":          Fail(errTest),
		"union left":    Union(bad, good),
		"union right":   Union(good, bad),
		"intersect":     Intersect(bad, good),
		"intersect two": Intersect(good, bad),
		"subtract":      Subtract(bad, good),
		"subtract two":  Subtract(good, bad),
		"clip":          bad.Clip(1000),
		"round":         bad.Round(8, 1000),
		"bits":          FromBits(1, 1000, sequence([]Page{{NumBits: 8, Bits: []byte{0xff}}}, errTest)),
	}
	for name, set := range sets {
		count := 0
		var last error
		for _, err := range set {
			if last != nil {
				t.Errorf("%s: something follows the error", name)
			}
			if last = err; err != nil {
				count++
			}
		}
		if count != 1 || !errors.Is(last, errTest) {
			t.Errorf("%s: %d errors, the last element's is %v", name, count, last)
		}
		if _, err := set.Collect(); !errors.Is(err, errTest) {
			t.Errorf("%s: Collect: %v", name, err)
		}
		if _, err := set.Bytes(); !errors.Is(err, errTest) {
			t.Errorf("%s: Bytes: %v", name, err)
		}
	}
	if _, err := Equal(broken(), Of()); !errors.Is(err, errTest) {
		t.Errorf("Equal: %v", err)
	}
	if ok, err := Contains(good, broken()); ok || !errors.Is(err, errTest) {
		t.Errorf("Contains: %v, %v", ok, err)
	}
}

func TestNilIsEmpty(t *testing.T) {
	t.Parallel()
	var none Runs
	one := Of(Run{1, 2})
	for name, set := range map[string]Runs{
		"union": Union(none, none), "single": Union(none), "no operand": Union(), "intersect": Intersect(one, none),
		"subtract": Subtract(none, one), "clip": none.Clip(10), "round": none.Round(4, 10), "fail": Fail(nil), "of": Of(),
	} {
		if runs, err := set.Collect(); len(runs) != 0 || err != nil {
			t.Errorf("%s: %v, %v", name, runs, err)
		}
	}
	if n, err := none.Bytes(); n != 0 || err != nil {
		t.Errorf("Bytes: %d, %v", n, err)
	}
}

func TestBigOffsets(t *testing.T) {
	t.Parallel()
	const top = math.MaxInt64
	got, err := Of(Run{1, 2}, Run{top - 1, top}).Round(1<<62, top).Collect()
	if err != nil || !slices.Equal(got, []Run{{0, 1 << 62}, {1 << 62, top}}) && !slices.Equal(got, []Run{{0, top}}) {
		t.Fatalf("%v, %v", got, err)
	}
	if len(got) != 1 {
		t.Fatalf("touching runs are left: %v", got)
	}
	got, err = FromBits(1<<31, top, sequence([]Page{{FirstBit: top / (1 << 31), NumBits: 64, Bits: []byte{0xff, 0, 0, 0, 0, 0, 0, 1}}}, nil)).Collect()
	if err != nil || !slices.Equal(got, []Run{{top &^ (1<<31 - 1), top}}) {
		t.Fatalf("%v, %v", got, err)
	}
}

func TestBadArguments(t *testing.T) {
	t.Parallel()
	for name, set := range map[string]Runs{
		"round to 0":     Of(Run{0, 1}).Round(0, 10),
		"bits of -1":     FromBits(-1, 10, sequence(nil, nil)),
		"page backwards": FromBits(1, 100, sequence([]Page{{FirstBit: 8, NumBits: 8}, {FirstBit: 8, NumBits: 8}}, nil)),
		"page too short": FromBits(1, 100, sequence([]Page{{NumBits: 9, Bits: []byte{1}}}, nil)),
		"page overflow":  FromBits(1, 100, sequence([]Page{{FirstBit: 1, NumBits: math.MaxInt64, Ones: true}}, nil)),
	} {
		if _, err := set.Collect(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// A set is read only as far as its consumer wants.
func TestLazy(t *testing.T) {
	t.Parallel()
	reads := 0
	source := Runs(func(yield func(Run, error) bool) {
		for i := int64(0); ; i += 2 {
			reads++
			if !yield(Run{i, i + 1}, nil) {
				return
			}
		}
	})
	set := Subtract(Union(source, source.Clip(1<<40)), Of(Run{10, 20})).Round(4, 1<<50)
	if reads != 0 {
		t.Fatal("reading began before the iteration")
	}
	for r, err := range set {
		if err != nil {
			t.Fatal(err)
		}
		if r.Start > 10 {
			t.Fatalf("got %v", r) // all bits of a 4-byte granule are touched from 20 on: one endless run
		}
		break
	}
	if reads > 1000 {
		t.Fatalf("%d runs were read for the first one of the result", reads)
	}
}

func alternating(n int64) Runs {
	return func(yield func(Run, error) bool) {
		for i := range n {
			if !yield(Run{i * 131072, i*131072 + 65536}, nil) {
				return
			}
		}
	}
}

func BenchmarkUnion(b *testing.B) {
	shifted := func(yield func(Run, error) bool) {
		for r := range alternating(int64(b.N)) {
			if !yield(Run{r.Start + 32768, r.End + 32768}, nil) {
				return
			}
		}
	}
	if _, err := Union(alternating(int64(b.N)), shifted).Bytes(); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkSubtract(b *testing.B) {
	if _, err := Subtract(alternating(int64(b.N)), Of(Run{5, 10})).Bytes(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkSparse16TiB scans the bits of a 16 TiB disk at 64 KiB of which one in each qcow2 cluster
// of bits is set.
func BenchmarkSparse16TiB(b *testing.B) {
	page := make([]byte, 65536)
	page[1000] = 4
	const pages = 16 << 40 / 65536 / (65536 * 8)
	for range b.N {
		n, err := FromBits(65536, 16<<40, func(yield func(Page, error) bool) {
			for i := range int64(pages) {
				if !yield(Page{FirstBit: i * 65536 * 8, NumBits: 65536 * 8, Bits: page}, nil) {
					return
				}
			}
		}).Bytes()
		if err != nil || n != pages*65536 {
			b.Fatal(n, err)
		}
	}
}
