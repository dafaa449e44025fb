// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

// Until the first release a change of the format makes the corpus anew.
const corpusHint = "the corpus of repositories: if the format was changed on purpose, and there is no release yet, make it anew: scripts/corpus testdata/corpus/dev"

// wanted is a disk of a checkpoint, and the SHA-256 of its bytes as qemu-img read them.
type wanted struct{ domain, checkpoint, disk, sum string }

// TestCorpus: repositories that earlier versions have written are read, proven, restored to the digests that
// qemu-img gave then, and gone on with. Nothing of that changes what is there.
func TestCorpus(t *testing.T) {
	t.Parallel()
	releases, err := filepath.Glob("../../testdata/corpus/*/digests")
	if err != nil || len(releases) == 0 {
		t.Fatalf("there is no corpus: %v", err)
	}
	for _, digests := range releases {
		dir := filepath.Dir(digests)
		for kind, disks := range readDigests(t, digests) {
			t.Run(filepath.Base(dir)+"/"+kind, func(t *testing.T) {
				t.Parallel()
				repo := filepath.Join(t.TempDir(), "repo")
				unpack(t, filepath.Join(dir, kind+".tar.gz"), repo)
				c := &corpus{t: t, repo: repo, key: filepath.Join(dir, kind+".key")}
				if _, err := os.Stat(c.key); errors.Is(err, fs.ErrNotExist) {
					c.key = ""
				}
				c.reads(disks)
				c.goesOn()
			})
		}
	}
}

type corpus struct {
	t         *testing.T
	repo, key string
}

// run runs a command that has to end with a status, and returns what it prints.
func (c *corpus) run(want int, args ...string) string {
	c.t.Helper()
	args = append(args, "--repo", c.repo)
	if c.key != "" {
		args = append(args, "--identity", c.key)
	}
	code, out, stderr := runHere(args...)
	if code != want {
		c.t.Fatalf("%q: exit status %d, want %d: %s%s\n%s", args, code, want, out, stderr, corpusHint)
	}
	return out
}

// reads looks at all that there is.
func (c *corpus) reads(disks []wanted) {
	c.t.Helper()
	var list struct {
		Checkpoints []struct {
			Domain, Checkpoint, Kind string
			Disks                    []struct {
				Disk string
				Lost int64 `json:"lost_bytes"`
			}
		}
	}
	if err := json.Unmarshal([]byte(c.run(exitDone, "list", "--json")), &list); err != nil {
		c.t.Fatal(err)
	}
	var have, want []string
	for _, cp := range list.Checkpoints {
		for _, d := range cp.Disks {
			if cp.Kind == "archive" && d.Lost == 0 {
				have = append(have, cp.Domain+" "+cp.Checkpoint+" "+d.Disk)
			}
		}
	}
	for _, w := range disks {
		want = append(want, w.domain+" "+w.checkpoint+" "+w.disk)
	}
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		c.t.Errorf("it lists %q, and has %q", have, want)
	}
	c.run(exitDone, "check", "--read-data")
	c.run(exitDone, "drills", "verify")
	for _, w := range disks {
		out := filepath.Join(c.t.TempDir(), "disk.raw")
		c.run(exitDone, "restore", w.domain, w.checkpoint, "--to", w.disk+"="+out, "--quiet")
		if got := fmt.Sprintf("%x", testkit.Sum(c.t, out)); got != w.sum {
			c.t.Errorf("%s %s %s is restored to %s, and was %s", w.domain, w.checkpoint, w.disk, got, w.sum)
		}
	}
}

// goesOn backs up into it, forgets and prunes, and proves the rest.
func (c *corpus) goesOn() {
	c.t.Helper()
	image := filepath.Join(c.t.TempDir(), "new.raw")
	if err := os.WriteFile(image, append(make([]byte, 1<<20), "new"+strings.Repeat("x", 509)...), 0o600); err != nil {
		c.t.Fatal(err)
	}
	c.run(exitDone, "backup", "new", "--disk", "vda="+image+",format=raw", "--checkpoint", "one")
	c.run(exitDone, "forget", "web", "c2", "--prune", "--max-unused", "0%")
	c.run(exitDone, "check", "--read-data")
	out := filepath.Join(c.t.TempDir(), "disk.raw")
	c.run(exitDone, "restore", "new", "one", "--to", "vda="+out, "--quiet")
	if testkit.Sum(c.t, out) != testkit.Sum(c.t, image) {
		c.t.Error("what was backed up now is restored to something else")
	}
}

// readDigests returns what a file of digests has, by kinds of repositories.
func readDigests(t *testing.T, path string) map[string][]wanted {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all := make(map[string][]wanted)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		w := strings.Fields(lines.Text())
		if len(w) != 5 {
			t.Fatalf("%s: %q", path, lines.Text())
		}
		all[w[0]] = append(all[w[0]], wanted{w[1], w[2], w[3], w[4]})
	}
	if len(all) < 3 {
		t.Fatalf("%s has %d kinds of repositories", path, len(all))
	}
	return all
}

// unpack lays a repository out as it was, with the times at which its store took each object.
func unpack(t *testing.T, path, dir string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		at := filepath.Join(dir, filepath.Clean("/"+h.Name))
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(at, 0o700)
		} else if err = writeFrom(at, r); err == nil {
			err = os.Chtimes(at, h.ModTime, h.ModTime)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func writeFrom(path string, r io.Reader) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = io.Copy(f, r)
	return err
}
