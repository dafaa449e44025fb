// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/nbd"
)

// puller is a backup application: it keeps a copy of a disk by pulling what
// changed, and looks at nothing but the exports.
type puller struct {
	testing.TB
	dir    string
	image  string // the active one
	copy   string
	socket string
}

func (p *puller) path(name string) string { return filepath.Join(p.dir, name) }

func (p *puller) tool(name string, args ...string) string {
	p.Helper()
	return testkit.ToolIn(p, p.dir, name, args...)
}

// serve runs an export while do is at work.
func (p *puller) serve(do func(offers map[string]offerJSON), args ...string) {
	p.Helper()
	cmd := exec.Command("imgbackup", append([]string{"export", "vm", "--disk", "vda=" + p.image + ",format=qcow2", "--socket", p.socket,
		"--repo", "repo", "--json"}, args...)...)
	cmd.Dir = p.dir
	var s server
	if err := s.start(cmd); err != nil {
		p.Fatal(err)
	}
	defer func() {
		if code, err := s.end(syscall.SIGTERM); err != nil || code != exitDone {
			p.Errorf("exit status %d, %v\n%s", code, err, &s.stderr)
		}
	}()
	var out struct{ Exports []offerJSON }
	if err := json.Unmarshal([]byte(s.out), &out); err != nil {
		p.Error(err)
		return
	}
	offers := make(map[string]offerJSON)
	for _, o := range out.Exports {
		offers[o.Target] = o
	}
	do(offers)
}

// client connects to an export.
func (p *puller) client(o offerJSON, contexts ...string) *nbd.Client {
	p.Helper()
	c, err := nbd.Dial(p.Context(), "unix", p.path(p.socket), nbd.ClientOptions{Export: o.Export, Contexts: contexts})
	if err != nil {
		p.Fatal(err)
	}
	return c
}

type span struct{ start, end int64 }

// patch brings the copy up to date by what an export says is dirty, and returns
// that.
func (p *puller) patch(o offerJSON) []span {
	p.Helper()
	c := p.client(o, o.Context)
	defer c.Close()
	f, err := os.OpenFile(p.copy, os.O_RDWR, 0)
	if err != nil {
		p.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(c.Size()); err != nil {
		p.Fatal(err)
	}
	var dirty []span
	var sum int64
	for e, err := range c.Extents(p.Context(), o.Context, 0, c.Size()) {
		if err != nil {
			p.Fatal(err)
		}
		if e.Flags&nbd.StateDirty == 0 {
			continue
		}
		data := make([]byte, e.End-e.Start)
		if err := c.ReadAt(p.Context(), data, e.Start); err != nil {
			p.Fatal(err)
		}
		if _, err := f.WriteAt(data, e.Start); err != nil {
			p.Fatal(err)
		}
		dirty = append(dirty, span{e.Start, e.End})
		sum += e.End - e.Start
	}
	if sum != o.ChangedBytes {
		p.Errorf("%d bytes are dirty, and %d were announced", sum, o.ChangedBytes)
	}
	return dirty
}

// libnbd and QEMU find the same dirty.
func (p *puller) alsoDirty(o offerJSON, want []span) {
	p.Helper()
	var found []struct{ Offset, Length, Type int64 }
	p.decode(p.tool("nbdinfo", "--json", "--map="+o.Context, o.URI), &found)
	var dirty []span
	for _, e := range found {
		if e.Type == nbd.StateDirty {
			dirty = append(dirty, span{e.Offset, e.Offset + e.Length})
		}
	}
	if !slices.Equal(dirty, want) {
		p.Errorf("nbdinfo finds %v, want %v", dirty, want)
	}
	var mapped []struct {
		Start, Length int64
		Data          bool
	}
	p.decode(p.tool("qemu-img", "map", "--output=json", "--image-opts", fmt.Sprintf(
		"driver=nbd,server.type=unix,server.path=%s,export=%s,x-dirty-bitmap=%s", p.socket, o.Export, o.Context)), &mapped)
	dirty = nil
	for _, e := range mapped {
		if n := len(dirty); !e.Data && n > 0 && dirty[n-1].end == e.Start {
			dirty[n-1].end += e.Length
		} else if !e.Data {
			dirty = append(dirty, span{e.Start, e.Start + e.Length})
		}
	}
	if !slices.Equal(dirty, want) {
		p.Errorf("qemu-img map finds %v, want %v", dirty, want)
	}
}

func (p *puller) decode(text string, into any) {
	p.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		p.Fatalf("%v\n%s", err, text)
	}
}

// upToDate demands that the copy is what QEMU reads in the image.
func (p *puller) upToDate(what string) {
	p.Helper()
	want := p.path("want.raw")
	p.tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", p.image, want)
	a, err := os.ReadFile(want)
	if err != nil {
		p.Fatal(err)
	}
	b, err := os.ReadFile(p.copy)
	if err != nil {
		p.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		at := 0
		for at < min(len(a), len(b)) && a[at] == b[at] {
			at++
		}
		p.Fatalf("%s: the copy of %d bytes differs from the image's %d at %d", what, len(b), len(a), at)
	}
}

// The chain of pulls: a full with a checkpoint, and then, round after round, what
// changed since the last one, while the guest writes and discards, overlays are put
// on the image and the disk grows.
func TestChainOfPulls(t *testing.T) {
	t.Parallel()
	for i, cluster := range []string{"64k", "4k", "1M"} {
		t.Run(cluster, func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			pullChain(t, cluster, i, rand.New(rand.NewPCG(seed, 0)))
		})
	}
}

func pullChain(t *testing.T, cluster string, first int, random *rand.Rand) {
	dir := t.TempDir()
	p := &puller{TB: t, dir: dir, image: filepath.Join(dir, "0.qcow2"), copy: filepath.Join(dir, "copy.raw"), socket: "s"}
	size := int64(6<<20 + 12<<9)
	p.tool("imgbackup", "init", "--repo", "repo")
	p.tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size="+cluster, p.image, fmt.Sprint(size))
	guest := func(n int) {
		args := []string{"-f", "qcow2", "-d", "unmap", p.image}
		for range n {
			start := random.Int64N(size/512) * 512
			length := min(size-start, (1+random.Int64N(400))*512)
			args = append(args, "-c", fmt.Sprintf([]string{"write -P %[3]d %[1]d %[2]d", "write -P %[3]d %[1]d %[2]d", "discard %[1]d %[2]d",
				"write -z %[1]d %[2]d", "write -z -u %[1]d %[2]d"}[random.IntN(5)], start, length, 1+random.IntN(255)))
		}
		p.tool("qemu-io", args...)
	}
	guest(12)
	p.serve(func(offers map[string]offerJSON) {
		if o := offers["vda"]; first%2 == 0 {
			p.tool("nbdcopy", o.URI, p.copy)
		} else {
			p.tool("qemu-img", "convert", "-f", "raw", "-O", "raw", o.URI, p.copy)
		}
	}, "--checkpoint", "c0")
	p.upToDate("the full")
	last := "c0"
	for round := 1; round <= 6; round++ {
		switch (round + first) % 3 {
		case 0:
			size += (1 + random.Int64N(300)) * 512
			p.tool("qemu-img", "resize", "-q", "-f", "qcow2", p.image, fmt.Sprint(size))
		case 1:
			next := p.path(fmt.Sprintf("%d.qcow2", round))
			p.tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size="+cluster, "-b", p.image, "-F", "qcow2", next)
			p.image = next
		}
		guest(random.IntN(8))
		next, since := fmt.Sprintf("c%d", round), last
		p.serve(func(offers map[string]offerJSON) {
			o := offers["vda"]
			if o.Context != "qemu:dirty-bitmap:backup-vda" || o.IncrementalFrom != since {
				t.Fatalf("%+v", o)
			}
			p.alsoDirty(o, p.patch(o))
		}, "--incremental", since, "--checkpoint", next)
		p.upToDate(fmt.Sprintf("since %s (the disk has %d bytes)", since, size))
		last = next
	}
	if err := os.Truncate(p.copy, 0); err != nil {
		t.Fatal(err)
	}
	p.serve(func(offers map[string]offerJSON) { p.tool("nbdcopy", offers["vda"].URI, p.copy) })
	p.upToDate("another full")
}

// An export that no client uses, and one whose clients go away in the middle, end
// as they should; and the next can be incremental.
func TestExportURIs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := &puller{TB: t, dir: dir, image: filepath.Join(dir, "0.qcow2"), copy: filepath.Join(dir, "copy.raw"), socket: "s"}
	p.tool("imgbackup", "init", "--repo", "repo")
	p.tool("qemu-img", "create", "-q", "-f", "qcow2", p.image, "1M")
	p.tool("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 1M", p.image)
	p.serve(func(offers map[string]offerJSON) {
		u, err := url.Parse(offers["vda"].URI)
		if err != nil || u.Scheme != "nbd+unix" || u.Path != "/vda" || u.Query().Get("socket") != p.path("s") {
			t.Errorf("%v, %v", u, err)
		}
		c := p.client(offers["vda"], nbd.BaseAllocation)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		c = p.client(offers["vda"])
		t.Cleanup(func() { c.Close() }) // the server ends before it
	}, "--checkpoint", "c0")
	p.serve(func(offers map[string]offerJSON) {
		if o := offers["vda"]; o.ChangedBytes != 0 || o.IncrementalFrom != "c0" {
			t.Errorf("%+v", o)
		}
	}, "--incremental", "c0")
}
