// SPDX-License-Identifier: Apache-2.0

package push

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/outfile"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/qcow2"
)

// lab is a folder of images, and a repository in memory.
type lab struct {
	t    *testing.T
	dir  string
	repo *chain.Repository
}

func newLab(t *testing.T) *lab {
	t.Helper()
	repo, err := chain.Init(t.Context(), objstore.NewMem(), chain.InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return &lab{t: t, dir: t.TempDir(), repo: repo}
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) path(name string) string { return filepath.Join(l.dir, name) }

// tool runs a program in the lab's folder, which must succeed, and returns its
// output.
func (l *lab) tool(name string, args ...string) string {
	l.t.Helper()
	return testkit.ToolIn(l.t, l.dir, name, args...)
}

// write is what a VM does: qemu-io's commands on a qcow2 image.
func (l *lab) write(image string, commands ...string) {
	l.t.Helper()
	args := []string{"-f", "qcow2", "-d", "unmap"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	if out := l.tool("qemu-io", append(args, image)...); strings.Contains(out, "failed") || strings.Contains(out, "error") {
		l.t.Fatalf("qemu-io %q: %s", commands, out)
	}
}

// request asks for a full backup of an image, without a checkpoint.
func (l *lab) request(images ...string) backup.Request {
	req := backup.Request{Domain: "vm", Tool: "test"}
	for i, image := range images {
		req.Disks = append(req.Disks, backup.DiskRequest{Disk: disk(i), Path: l.path(image), Format: qcow2.Qcow2})
	}
	return req
}

// disk is the name of disk i of a domain.
func disk(i int) string { return "vd" + string(rune('a'+i)) }

// targets are files of the lab, one for each disk.
func (l *lab) targets(format qcow2.Format, names ...string) []Target {
	var list []Target
	for i, name := range names {
		list = append(list, Target{Disk: disk(i), Path: l.path(name), Format: format})
	}
	return list
}

func (l *lab) push(req backup.Request, targets []Target, o Options) *Result {
	l.t.Helper()
	res, err := Run(l.t.Context(), l.repo, req, backup.Hooks{}, targets, o)
	l.must(err)
	return res
}

// same demands that two disks read the same, as QEMU sees them.
func (l *lab) same(a string, af qcow2.Format, b string, bf qcow2.Format) {
	l.t.Helper()
	if out := l.tool("qemu-img", "compare", "-f", string(af), "-F", string(bf), a, b); strings.Contains(out, "mismatch") {
		l.t.Fatalf("%s and %s: %s", a, b, out)
	}
}

// clean demands that qemu-img finds neither errors nor leaks in a qcow2 image.
func (l *lab) clean(image string) {
	l.t.Helper()
	if out := l.tool("qemu-img", "check", "-f", "qcow2", image); !strings.Contains(out, "No errors were found on the image.") {
		l.t.Fatalf("qemu-img check %s: %s", image, out)
	}
}

// allocated returns what an image that has a backing file holds itself.
func (l *lab) allocated(image string) []bitmapstore.Run {
	l.t.Helper()
	var extents []struct {
		Start, Length, Depth int64
		Present              bool
	}
	l.must(json.Unmarshal([]byte(l.tool("qemu-img", "map", "--output=json", "-f", "qcow2", image)), &extents))
	var runs []bitmapstore.Run
	for _, e := range extents {
		if e.Depth == 0 && e.Present {
			runs = append(runs, bitmapstore.Run{Start: e.Start, End: e.Start + e.Length})
		}
	}
	runs, err := bitmapstore.Of(runs...).Collect()
	l.must(err)
	return runs
}

// onlyImages demands that the folder holds nothing but the files named.
func (l *lab) onlyImages(names ...string) {
	l.t.Helper()
	entries, err := os.ReadDir(l.dir)
	l.must(err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if fmt.Sprint(got) != fmt.Sprint(names) {
		l.t.Fatalf("the folder holds %q, want %q", got, names)
	}
}

// noCheckpoint demands that neither the repository nor the images know a
// checkpoint.
func (l *lab) noCheckpoint(name string, images ...string) {
	l.t.Helper()
	if _, err := l.repo.Manifest(l.t.Context(), "vm", name); !errors.Is(err, chain.ErrNoCheckpoint) {
		l.t.Errorf("checkpoint %s: %v", name, err)
	}
	for _, image := range images {
		if out := l.tool("qemu-img", "info", "-f", "qcow2", image); strings.Contains(out, "name: "+name+".") {
			l.t.Errorf("%s has the bitmap of checkpoint %s: %s", image, name, out)
		}
	}
}

// system is the machine's own, to be changed by a test.
func system() *outfile.System { return outfile.Linux() }
