// SPDX-License-Identifier: Apache-2.0

package bitmapstore

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/imgbackup/imgbackup/internal/spool"
)

// after is what Index.From has to give.
func after(all []Run, start int64) []Run {
	return all[slices.IndexFunc(append(all[:len(all):len(all)], Run{start, start + 1}), func(r Run) bool { return r.End > start }):]
}

func TestIndexGivesTheSetFromAnywhere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		unit := int64(1) << rapid.IntRange(0, 20).Draw(t, "unit")
		random := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		var all []Run
		pos := random.Int64N(3) * unit
		for range rapid.IntRange(0, 5*indexBlock).Draw(t, "runs") {
			end := pos + (1+random.Int64N(1+random.Int64N(1000)))*unit
			all = append(all, Run{pos, end})
			pos = end + (1+random.Int64N(1+random.Int64N(1000)))*unit
		}
		x, err := newIndex(context.Background(), Of(all...), dir, 2)
		if err != nil {
			t.Fatal(err)
		}
		defer x.Close()
		sum, err := Of(all...).Bytes()
		if err != nil || x.Bytes() != sum {
			t.Fatalf("%d bytes, want %d, %v", x.Bytes(), sum, err)
		}
		if len(x.places) > 2 {
			t.Fatalf("%d places", len(x.places))
		}
		for range 20 {
			start := random.Int64N(pos + 2)
			got, err := x.From(start).Collect()
			if err != nil || !slices.Equal(got, after(all, start)) {
				t.Fatalf("from %d: %v, %d runs, want %d", start, err, len(got), len(after(all, start)))
			}
			for r, err := range x.From(start) { // stopped at once
				if err != nil || r != got[0] {
					t.Fatalf("from %d: %v, %v", start, r, err)
				}
				break
			}
		}
	})
}

// Every second granule of a large disk: what does not fit into memory is in a file.
func TestIndexOfManyRuns(t *testing.T) {
	t.Parallel()
	const n, granule = 3 << 20, 64 << 10
	fragmented := Runs(func(yield func(Run, error) bool) {
		for i := range int64(n) {
			if !yield(Run{2 * i * granule, (2*i + 1) * granule}, nil) {
				return
			}
		}
	})
	dir := t.TempDir()
	x, err := newIndex(t.Context(), fragmented, dir, 1<<10)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	if x.data.Size() < 2*spool.Memory || len(x.places) > 1<<10 || len(x.places) < 1<<9 {
		t.Fatalf("%d bytes, %d places", x.data.Size(), len(x.places))
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("files: %v, %v", left, err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		i := random.Int64N(n - 1)
		want := []Run{{2 * i * granule, (2*i + 1) * granule}, {2 * (i + 1) * granule, (2*i + 3) * granule}}
		var got []Run
		for r, err := range x.From(2*i*granule + random.Int64N(granule)) {
			if err != nil {
				t.Fatal(err)
			}
			if got = append(got, r); len(got) == 2 {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%v, want %v", got, want)
		}
	}
}

func TestIndexErrors(t *testing.T) {
	t.Parallel()
	bad := errors.New("bad")
	broken := Runs(func(yield func(Run, error) bool) {
		_ = yield(Run{0, 1}, nil) && yield(Run{}, bad)
	})
	if _, err := NewIndex(t.Context(), broken, ""); !errors.Is(err, bad) {
		t.Errorf("a set that cannot be read: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := NewIndex(ctx, Of(Run{0, 1}), ""); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	x, err := NewIndex(t.Context(), nil, "")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := x.From(0).Collect(); len(got) > 0 || err != nil {
		t.Errorf("the empty set: %v, %v", got, err)
	}
	// What lies behind the index was cut off.
	if x, err = NewIndex(t.Context(), Of(Run{0, 10}, Run{20, 30}), ""); err != nil {
		t.Fatal(err)
	}
	if err := cut(x); err != nil {
		t.Fatal(err)
	}
	if got, err := x.From(0).Collect(); err == nil {
		t.Errorf("a cut index gives %v", got)
	}
}

// cut makes the index end within its last block.
func cut(x *Index) error {
	whole := make([]byte, x.data.Size())
	if _, err := x.data.ReadAt(whole, 0); err != nil {
		return err
	}
	x.data = spool.Spool{}
	_, err := x.data.Write(whole[:len(whole)-1])
	return err
}
