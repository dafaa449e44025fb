// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

// An image with a backing file reads as what was allocated in it, zeros where
// it says so, and everywhere else as the backing file, whatever their sizes.
func TestCreatorOverBacking(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		cs := int64(512) << rapid.IntRange(0, 12).Draw(t, "cluster bits")
		span := min(4*cs*cs/8, 6<<20) / 512
		size := 512 * rapid.Int64Range(1, span).Draw(t, "sectors")
		base := 512 * rapid.Int64Range(1, span).Draw(t, "sectors of the backing file")
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		below := make([]byte, base)
		for i := range below {
			below[i] = byte(rng.Uint32()) | 1
		}
		model := make([]byte, size)
		copy(model, below)
		baseName := rapid.SampledFrom([]string{"base.raw", "./base:1.raw", dir + "/base.raw"}).Draw(t, "name")
		basePath := baseName
		if !filepath.IsAbs(baseName) {
			basePath = filepath.Join(dir, baseName)
		}
		raw, img := filepath.Join(dir, "model.raw"), filepath.Join(dir, "made.qcow2")
		if err := os.WriteFile(basePath, below, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(img, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		c, err := NewCreator(f, CreateOptions{Size: size, ClusterSize: cs, Backing: &CreateBacking{File: baseName, Format: Raw}})
		if err != nil {
			t.Fatal(err)
		}
		allocated := make([]bool, (size+cs-1)/cs)
		for pos := int64(0); pos < size; {
			end := min(size, pos+cs*(1+rng.Int64N(5)))
			switch rng.IntN(3) {
			case 0:
				for i := pos; i < end; i++ {
					model[i] = byte(rng.Uint32())
				}
				runs, err := c.Allocate(pos, end)
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range runs {
					if _, err := f.WriteAt(model[r.Guest:r.Guest+r.Length], r.Host); err != nil {
						t.Fatal(err)
					}
				}
			case 1:
				clear(model[pos:end])
				if err := c.Zero(pos, end); err != nil {
					t.Fatal(err)
				}
			default:
				pos = end
				continue
			}
			for n := pos / cs; n*cs < end; n++ {
				allocated[n] = true
			}
			pos = end
		}
		if err := c.Finish(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(raw, model, 0o600); err != nil {
			t.Fatal(err)
		}
		createCheckClean(t, img)
		testkit.Tool(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", img, raw)
		var info struct {
			Backing string `json:"backing-filename"`
			Format  string `json:"backing-filename-format"`
		}
		if err := json.Unmarshal([]byte(testkit.Tool(t, "qemu-img", "info", "--output=json", "-f", "qcow2", img)), &info); err != nil {
			t.Fatal(err)
		}
		if info.Backing != baseName || info.Format != "raw" {
			t.Fatalf("info %+v", info)
		}
		var extents []struct {
			Start, Length, Depth int64
		}
		if err := json.Unmarshal([]byte(testkit.Tool(t, "qemu-img", "map", "--output=json", "-f", "qcow2", img)), &extents); err != nil {
			t.Fatal(err)
		}
		for _, e := range extents {
			for pos := e.Start; pos < e.Start+e.Length; pos += 512 {
				// Beyond the backing file's end QEMU counts what is not allocated
				// as being of the top image, or of nobody.
				if a := allocated[pos/cs]; pos < base && a != (e.Depth == 0) {
					t.Fatalf("at %d: depth %d, allocated %t", pos, e.Depth, a)
				}
			}
		}
		chain, err := Open(img, Qcow2, OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = chain.Close() }()
		got := make([]byte, size)
		if err := chain.ReadAt(t.Context(), got, 0); err != nil || string(got) != string(model) {
			t.Fatalf("our own reader reads something else (%v)", err)
		}
	})
}

func TestCreatorRefusesZerosOutOfOrder(t *testing.T) {
	t.Parallel()
	f, err := os.Create(filepath.Join(t.TempDir(), "i"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	const cs = 64 << 10
	c, err := NewCreator(f, CreateOptions{Size: 4*cs + 512})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Allocate(0, 1000); err != nil {
		t.Fatal(err)
	}
	for _, r := range [][2]int64{{0, cs}, {1024, cs}, {cs + 512, 2 * cs}, {cs, cs + 512}, {2 * cs, cs}, {cs, 5 * cs}, {-cs, 0}} {
		if err := c.Zero(r[0], r[1]); err == nil {
			t.Errorf("zeros %v were taken", r)
		}
	}
	for _, r := range [][2]int64{{cs, cs}, {cs, 2 * cs}, {3 * cs, 4*cs + 512}} {
		if err := c.Zero(r[0], r[1]); err != nil {
			t.Error(err)
		}
	}
	if runs, err := c.Allocate(4*cs, 4*cs+512); err == nil {
		t.Errorf("allocated among zeros: %v", runs)
	}
	if err := c.Finish(); err != nil {
		t.Fatal(err)
	}
	if err := c.Zero(4*cs+512, 4*cs+512); err == nil {
		t.Error("zeros after the end")
	}
}

// The longest names that fit are taken, and read by QEMU.
func TestCreatorLongBackingName(t *testing.T) {
	t.Parallel()
	for _, o := range []struct {
		cs int64
		n  int
	}{{512, 376}, {4096, 1023}} {
		dir := t.TempDir()
		name := strings.Repeat("d/", (o.n-1)/2) + strings.Repeat("x", 1+(o.n-1)%2)
		img := filepath.Join(dir, "i.qcow2")
		createImage(t, img, CreateOptions{Size: 1 << 20, ClusterSize: o.cs, Backing: &CreateBacking{File: name, Format: Qcow2}}, nil, nil)
		out := testkit.Tool(t, "qemu-img", "info", "-f", "qcow2", img)
		if !strings.Contains(out, fmt.Sprintf("backing file: %s", name)) || len(name) != o.n {
			t.Errorf("a name of %d bytes: %s", len(name), out)
		}
		testkit.Tool(t, "qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "", img)
		createCheckClean(t, img)
	}
}
