// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/internal/testkit"
)

// What lies over another image is what the layers over it have, zeros as well; and only where that is
// read the same way, and no layer in between ends before it.
func TestAbove(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	base, top, shorter, grown := filepath.Join(dir, "base"), filepath.Join(dir, "top"), filepath.Join(dir, "shorter"), filepath.Join(dir, "grown")
	bmCreate(t, base, "", 1<<20)
	bmIO(t, base, "write -P 1 0 1M")
	overlay(t, top, base, "qcow2")
	bmIO(t, top, "write -P 2 64k 64k", "write -z 256k 64k")
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", shorter, "512k")
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", shorter, "-F", "qcow2", grown, "1M")
	stack := func(path string, format Format) *Stack {
		s, ok := mustOpen(t, path, format).Stack()
		if !ok {
			t.Fatalf("%s has no stack", path)
		}
		return s
	}
	above, ok := mustOpen(t, top, Qcow2).Above(t.Context(), stack(base, Qcow2))
	if !ok {
		t.Fatal("it does not lie over its backing file")
	}
	want := []bitmapstore.Run{{Start: 64 << 10, End: 128 << 10}, {Start: 256 << 10, End: 320 << 10}}
	if runs, err := above.Collect(); err != nil || !slices.Equal(runs, want) {
		t.Errorf("%v, %v", runs, err)
	}
	for what, c := range map[string]struct {
		top   string
		below *Stack
	}{
		"read as raw":          {top, stack(base, Raw)},
		"itself":               {top, stack(top, Qcow2)},
		"another":              {grown, stack(top, Qcow2)},
		"a shorter in between": {grown, stack(base, Qcow2)},
		"a shorter":            {grown, stack(shorter, Qcow2)},
	} {
		if _, ok := mustOpen(t, c.top, Qcow2).Above(t.Context(), c.below); ok {
			t.Errorf("%s: it lies over it", what)
		}
	}
	past := time.Now().Add(-time.Hour) // a file's times have only seconds in an emulated program
	if err := os.Chtimes(base, past, past); err != nil {
		t.Fatal(err)
	}
	before := stack(base, Qcow2)
	bmIO(t, base, "write -P 3 0 64k")
	if _, ok := mustOpen(t, top, Qcow2).Above(t.Context(), before); ok {
		t.Error("it was written to since")
	}
}
