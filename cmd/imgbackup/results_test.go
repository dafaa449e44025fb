// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

// Whoever reads no further is no failure, and what a command found stays its status.
// Data that somebody relies on, and a medium that is full, are another matter.
func TestResultsThatNobodyReads(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "raw", at("a.raw"), "1M")
	testkit.Tool(t, "qemu-io", "-f", "raw", "-c", "write -P 1 0 64k", at("a.raw"))
	for _, args := range [][]string{{"init", "-r", at("repo")},
		{"backup", "-r", at("repo"), "web", "--disk", "vda=" + at("a.raw") + ",format=raw", "--checkpoint", "c1"}} {
		if code, _, stderr := runHere(args...); code != exitDone {
			t.Fatal(stderr)
		}
	}
	broken := at("broken")
	if err := os.CopyFS(broken, os.DirFS(at("repo"))); err != nil {
		t.Fatal(err)
	}
	packs, err := filepath.Glob(filepath.Join(broken, "packs", "*", "*"))
	if err != nil || len(packs) != 1 {
		t.Fatal(packs, err)
	}
	if err := os.Remove(packs[0]); err != nil {
		t.Fatal(err)
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = full.Close() }()
	for _, c := range []struct {
		args  []string
		to    *os.File // nil: a pipe that nobody reads
		code  int
		quiet bool
	}{
		{args: []string{"list"}, quiet: true},
		{args: []string{"list", "web", "--tree"}, quiet: true},
		{args: []string{"list", "--json"}, quiet: true},
		{args: []string{"show", "web", "c1"}, quiet: true},
		{args: []string{"check", "-q"}, quiet: true},
		{args: []string{"inspect", at("a.raw"), "--format", "raw"}, quiet: true},
		{args: []string{"--help"}, quiet: true},
		{args: []string{"completion", "bash"}, quiet: true},
		{args: []string{"check", "-r", broken}, code: exitDamage},
		{args: []string{"restore", "web", "--to", "vda=-"}, code: exitFailed},
		{args: []string{"list"}, to: full, code: exitFailed},
	} {
		if c.to == nil {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			_ = r.Close()
			defer func() { _ = w.Close() }()
			c.to = w
		}
		var stderr bytes.Buffer
		// -r, given twice, is the last one.
		code := run(append(append([]string{}, c.args[0], "-r", at("repo")), c.args[1:]...), program{out: c.to, err: &stderr})
		if code != c.code || c.quiet != (stderr.Len() == 0) {
			t.Errorf("%q: exit %d, stderr %q", c.args, code, &stderr)
		}
	}
}
