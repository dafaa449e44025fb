// SPDX-License-Identifier: Apache-2.0

package clustermap_test

import (
	"bytes"
	"errors"
	"io"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"

	"github.com/imgbackup/imgbackup/clustermap"
)

const unit = clustermap.MinUnit

// grain is the least part of a place in these tests: a quarter of a unit.
const grain = unit / 4

// disk is where each grain lies.
type disk []clustermap.Place

func drawDisk(t *rapid.T, grains int) disk {
	d := make(disk, grains)
	host := int64(1 << 20)
	for i := 0; i < grains; {
		kind := rapid.SampledFrom([]clustermap.Kind{clustermap.Hole, clustermap.Zero, clustermap.Data, clustermap.Compressed}).Draw(t, "kind")
		host += grain * rapid.Int64Range(0, 3).Draw(t, "gap")
		for n := rapid.IntRange(1, 9).Draw(t, "grains"); n > 0 && i < grains; n, i = n-1, i+1 {
			d[i] = place(kind, &host)
		}
	}
	return d
}

func place(kind clustermap.Kind, host *int64) clustermap.Place {
	p := clustermap.Place{Length: grain, Kind: kind}
	if kind == clustermap.Data || kind == clustermap.Compressed {
		p.Host = *host
		*host += grain
	}
	if kind == clustermap.Compressed {
		p.Stored = grain
	}
	return p
}

// places tells them from grain from on, cut as chance wants it.
func (d disk) places(from int, cut func() bool) iter.Seq2[clustermap.Place, error] {
	return func(yield func(clustermap.Place, error) bool) {
		var p clustermap.Place
		for i := from; i < len(d); i++ {
			q := d[i]
			q.Offset = int64(i) * grain
			joins := p.Kind == q.Kind && p.Kind != clustermap.Compressed && (p.Kind != clustermap.Data || p.Host+p.Length == q.Host)
			if p.Length > 0 && joins && !cut() {
				p.Length += grain
				continue
			}
			if p.Length > 0 && !yield(p, nil) {
				return
			}
			p = q
		}
		if p.Length > 0 {
			yield(p, nil)
		}
	}
}

func never() bool { return false }

func (d disk) size() int64 { return int64(len(d)) * grain }

func (d disk) units() iter.Seq2[clustermap.Run, error] {
	return clustermap.Units(d.places(0, never), unit, 0, d.size())
}

func (d disk) header() clustermap.Header {
	return clustermap.Header{Unit: unit, Units: (d.size() + unit - 1) / unit}
}

func collect(t rapid.TB, runs iter.Seq2[clustermap.Run, error]) []clustermap.Run {
	t.Helper()
	var all []clustermap.Run
	for r, err := range runs {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

// What moved is exactly the units of which any grain lies elsewhere, however the tables were
// cut; and what was stored is what comes back.
func TestMoved(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		then := drawDisk(t, rapid.IntRange(1, 60).Draw(t, "size"))
		now := slices.Clone(then)
		host := int64(1 << 30)
		for range rapid.IntRange(0, 4).Draw(t, "writes") {
			kind := rapid.SampledFrom([]clustermap.Kind{clustermap.Hole, clustermap.Zero, clustermap.Data, clustermap.Compressed}).Draw(t, "kind")
			now[rapid.IntRange(0, len(now)-1).Draw(t, "at")] = place(kind, &host)
		}
		cut := func() bool { return rapid.IntRange(0, 3).Draw(t, "cut") == 0 }
		again := collect(t, clustermap.Units(then.places(0, cut), unit, 0, then.size()))
		if want := collect(t, then.units()); !slices.Equal(again, want) {
			t.Fatalf("cut otherwise: %v, want %v", again, want)
		}

		var stored bytes.Buffer
		if err := clustermap.Encode(&stored, then.header(), then.units()); err != nil {
			t.Fatal(err)
		}
		was := clustermap.Decode(&stored, then.header())
		moved, err := clustermap.Moved(was, now.units(), unit, 0, now.size()).Collect()
		if err != nil {
			t.Fatal(err)
		}
		got := make(map[int64]bool)
		for _, r := range moved {
			for at := r.Start; at < r.End; at += unit {
				got[at/unit] = true
			}
		}
		for i := range now.header().Units {
			want := false
			for g := i * 4; g < min(i*4+4, int64(len(now))); g++ {
				want = want || now[g] != then[g]
			}
			if got[i] != want {
				t.Fatalf("unit %d moved: %v, want %v; %v", i, got[i], want, moved)
			}
		}
	})
}

// A part of the disk gives what the whole gives there.
func TestParts(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		d := drawDisk(t, rapid.IntRange(5, 60).Draw(t, "size"))
		from := rapid.Int64Range(0, (d.size()-1)/unit).Draw(t, "from") * unit
		part := clustermap.Units(d.places(int(from/grain), never), unit, from, d.size())
		whole := func(yield func(clustermap.Run, error) bool) {
			skip := from / unit
			for r, err := range d.units() {
				n := min(skip, r.Count)
				skip -= n
				if r.Count -= n; r.Kind == clustermap.Data {
					r.Host += n * unit
				}
				if r.Count > 0 && !yield(r, err) {
					return
				}
			}
		}
		if got, want := collect(t, part), collect(t, whole); !slices.Equal(got, want) {
			t.Fatalf("from %d: %v, want %v", from, got, want)
		}
	})
}

// compressed is a text as it is stored.
func compressed(t testing.TB, text string) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return z.EncodeAll([]byte(text), nil)
}

const good = "imgbackup-clusters 1\nunit 65536\nunits 9\nh 2\nd 3 1048576\nm 0badcafe\nz 3\nend 4\n"

func TestDecode(t *testing.T) {
	t.Parallel()
	h := clustermap.Header{Unit: 65536, Units: 9}
	want := []clustermap.Run{
		{Kind: clustermap.Hole, Count: 2}, {Kind: clustermap.Data, Count: 3, Host: 1 << 20},
		{Kind: clustermap.Mixed, Count: 1, Sum: 0x0badcafe}, {Kind: clustermap.Zero, Count: 3},
	}
	if got := collect(t, clustermap.Decode(bytes.NewReader(compressed(t, good)), h)); !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	for name, text := range map[string]string{
		"cut":         strings.TrimSuffix(good, "end 4\n"),
		"more":        good + "\n",
		"version":     strings.Replace(good, "clusters 1", "clusters 2", 1),
		"unit":        strings.Replace(good, "unit 65536", "unit 131072", 1),
		"units":       strings.Replace(good, "units 9", "units 10", 1),
		"count":       strings.Replace(good, "z 3", "z 4", 1),
		"few":         strings.Replace(good, "z 3", "z 2", 1),
		"end":         strings.Replace(good, "end 4", "end 5", 1),
		"zero":        strings.Replace(good, "z 3", "z 03", 1),
		"no units":    strings.Replace(good, "h 2", "h 0\nh 2", 1),
		"two as one":  strings.Replace(good, "h 2", "h 1\nh 1", 1),
		"data as one": strings.Replace(good, "d 3 1048576", "d 1 1048576\nd 2 1114112", 1),
		"no host":     strings.Replace(good, "d 3 1048576", "d 3", 1),
		"sum":         strings.Replace(good, "0badcafe", "0BADCAFE", 1),
		"kind":        strings.Replace(good, "z 3", "c 3", 1),
		"empty line":  strings.Replace(good, "z 3", "\nz 3", 1),
		"large":       strings.Replace(good, "z 3", "z 9999999999999999999", 1),
		"long line":   strings.Replace(good, "z 3", "z "+strings.Repeat("1", 200), 1),
	} {
		var err error
		for _, err = range clustermap.Decode(bytes.NewReader(compressed(t, text)), h) {
		}
		var bad *clustermap.DamageError
		if !errors.As(err, &bad) {
			t.Errorf("%s: %v, want damage", name, err)
		}
	}
	outage := errors.New("outage")
	var err error
	for _, err = range clustermap.Decode(io.MultiReader(bytes.NewReader(compressed(t, good)[:10]), failing{outage}), h) {
	}
	var bad *clustermap.DamageError
	if !errors.Is(err, outage) || errors.As(err, &bad) {
		t.Errorf("an outage: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// FuzzDecode: what is accepted is, byte by byte, what Encode writes.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte("imgbackup-clusters 1\nunit 65536\nunits 9\nh 9\nend 1\n"))
	h := clustermap.Header{Unit: 65536, Units: 9}
	f.Fuzz(func(t *testing.T, text []byte) {
		var runs []clustermap.Run
		for r, err := range clustermap.Decode(bytes.NewReader(compressed(t, string(text))), h) {
			if err != nil {
				return
			}
			runs = append(runs, r)
		}
		var again bytes.Buffer
		err := clustermap.Encode(&again, h, func(yield func(clustermap.Run, error) bool) {
			for _, r := range runs {
				if !yield(r, nil) {
					return
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		z, err := zstd.NewReader(&again)
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		if plain, err := io.ReadAll(z); err != nil || !bytes.Equal(plain, text) {
			t.Fatalf("%q was accepted, and is written as %q, %v", text, plain, err)
		}
	})
}

// BenchmarkEncode is of 1 TiB, each cluster of which lies by itself.
func BenchmarkEncode(b *testing.B) {
	const units = 16 << 20
	random := rand.New(rand.NewPCG(1, 1))
	hosts := make([]int64, units)
	for i := range hosts {
		hosts[i] = random.Int64N(units) * unit
	}
	places := func(yield func(clustermap.Place, error) bool) {
		for i, host := range hosts {
			if !yield(clustermap.Place{Offset: int64(i) * unit, Length: unit, Kind: clustermap.Data, Host: host}, nil) {
				return
			}
		}
	}
	var stored bytes.Buffer
	for b.Loop() {
		stored.Reset()
		err := clustermap.Encode(&stored, clustermap.Header{Unit: unit, Units: units}, clustermap.Units(places, unit, 0, units*unit))
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(stored.Len())/(1<<20), "MiB")
}
