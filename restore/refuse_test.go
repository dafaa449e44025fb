// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
	"github.com/imgbackup/imgbackup/view"
)

// twoDisks is a repository with a checkpoint of two small disks.
func twoDisks(t *testing.T) (*testRepo, *chain.Manifest, []*testDisk) {
	t.Helper()
	r := newTestRepo(t)
	rng := rand.New(rand.NewPCG(7, 7))
	disks := []*testDisk{newTestDisk("vda", 1<<20, rng), newTestDisk("vdb", 3<<20+512, rng)}
	return r, r.archive(t, disks...), disks
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	r, m, _ := twoDisks(t)
	noBitmap := *m
	noBitmap.Disks = append([]chain.Disk(nil), m.Disks...)
	noBitmap.Disks[0].Bitmap, noBitmap.Disks[0].NoBitmapReason = "", "the image was raw"
	noData := noBitmap
	noData.Disks = append([]chain.Disk(nil), m.Disks...)
	noData.Disks[1].Maps = nil
	for what, c := range map[string]struct {
		m       *chain.Manifest
		targets []Target // paths are relative to the folder
		o       Options
		want    error
		text    string
	}{
		"nothing":            {want: usage.ErrWrong},
		"unknown disk":       {targets: []Target{{"vdc", "x", qcow2.Raw}}, want: view.ErrUnknownDisk, text: "vda, vdb"},
		"prefix of a disk":   {targets: []Target{{"vd", "x", qcow2.Raw}}, want: view.ErrUnknownDisk},
		"disk twice":         {targets: []Target{{"vda", "x", qcow2.Raw}, {"vda", "y", qcow2.Raw}}, want: usage.ErrWrong},
		"format":             {targets: []Target{{"vda", "x", "nonsense"}}, want: usage.ErrWrong},
		"no format":          {targets: []Target{{"vda", "x", ""}}, want: usage.ErrWrong},
		"same path":          {targets: []Target{{"vda", "x", qcow2.Raw}, {"vdb", "sub/../x", qcow2.Raw}}, want: usage.ErrWrong, text: "both"},
		"same by link":       {targets: []Target{{"vda", "sub/x", qcow2.Raw}, {"vdb", "linked/x", qcow2.Raw}}, want: usage.ErrWrong, text: "both"},
		"same by hard link":  {targets: []Target{{"vda", "old", qcow2.Raw}, {"vdb", "hard", qcow2.Raw}}, o: Options{Force: true}, want: usage.ErrWrong, text: "both"},
		"exists":             {targets: []Target{{"vda", "x", qcow2.Raw}, {"vdb", "old", qcow2.Qcow2}}, want: ErrTargetExists, text: "--force"},
		"folder":             {targets: []Target{{"vda", "sub", qcow2.Raw}}, o: Options{Force: true}, text: "is a folder"},
		"folder by slash":    {targets: []Target{{"vda", "sub/", qcow2.Raw}}, o: Options{Force: true}, want: usage.ErrWrong},
		"no folder":          {targets: []Target{{"vda", "none/x", qcow2.Raw}}, want: os.ErrNotExist},
		"file as folder":     {targets: []Target{{"vda", "old/x", qcow2.Raw}}, want: syscall.ENOTDIR},
		"symbolic link":      {targets: []Target{{"vda", "link", qcow2.Raw}}, o: Options{Force: true}, text: "symbolic link"},
		"dangling link":      {targets: []Target{{"vda", "dangling", qcow2.Raw}}, o: Options{Force: true}, want: os.ErrNotExist},
		"fifo":               {targets: []Target{{"vda", "fifo", qcow2.Raw}}, o: Options{Force: true}, text: "neither a file"},
		"continue raw":       {targets: []Target{{"vda", "x", qcow2.Raw}}, o: Options{Continue: true}, want: usage.ErrWrong, text: "qcow2"},
		"continue no bitmap": {m: &noBitmap, targets: []Target{{"vda", "x", qcow2.Qcow2}}, o: Options{Continue: true}, want: usage.ErrWrong, text: "the image was raw"},
		"no data":            {m: &noData, targets: []Target{{"vda", "x", qcow2.Qcow2}, {"vdb", "y", qcow2.Raw}}, want: usage.ErrWrong, text: "no data"},
		"second exists late": {targets: []Target{{"vda", "x", qcow2.Raw}, {"vdb", "old", qcow2.Raw}}, want: ErrTargetExists},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for _, err := range []error{
				os.Mkdir(filepath.Join(dir, "sub"), 0o700), os.Symlink("sub", filepath.Join(dir, "linked")),
				os.WriteFile(filepath.Join(dir, "old"), []byte("old"), 0o600), os.Symlink("old", filepath.Join(dir, "link")),
				os.Link(filepath.Join(dir, "old"), filepath.Join(dir, "hard")),
				os.Symlink("gone", filepath.Join(dir, "dangling")), syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			before := strings.Join(testkit.Names(t, dir), " ")
			for i := range c.targets {
				c.targets[i].Path = dir + "/" + c.targets[i].Path
			}
			if c.m == nil {
				c.m = m
			}
			_, err := Run(context.Background(), r.repo, c.m, c.targets, c.o)
			if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("error %v, want %v with %q", err, c.want, c.text)
			}
			if after := strings.Join(testkit.Names(t, dir), " "); after != before {
				t.Errorf("the folder had %s, has %s", before, after)
			}
			if got, err := os.ReadFile(filepath.Join(dir, "old")); err != nil || string(got) != "old" {
				t.Errorf("the old file is now %q (%v)", got, err)
			}
			empty(t, filepath.Join(dir, "sub"))
		})
	}
}

// A target in use is not replaced, whoever uses it and however.
func TestTargetInUse(t *testing.T) {
	t.Parallel()
	r, m, _ := twoDisks(t)
	for what, args := range map[string][]string{"writer": nil, "reader": {"-r"}} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := filepath.Join(dir, "vda.qcow2")
			testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
			testkit.StartNBD(t, append(args, "-f", "qcow2", path)...)
			targets := []Target{{"vdb", filepath.Join(dir, "vdb.raw"), qcow2.Raw}, {"vda", path, qcow2.Qcow2}}
			_, err := Run(context.Background(), r.repo, m, targets, Options{Force: true})
			var inUse *qemu.InUseError
			if !errors.As(err, &inUse) || inUse.Path != path {
				t.Errorf("a target in use: %v", err)
			}
			if got := testkit.Names(t, dir); len(got) != 1 {
				t.Errorf("the folder has %q", got)
			}
		})
	}
}

func TestTargetsIn(t *testing.T) {
	t.Parallel()
	m := &chain.Manifest{Disks: []chain.Disk{{Name: "vda"}, {Name: "../vdb"}}}
	got, err := TargetsIn(m, []string{"vda"}, "/dir", qcow2.Qcow2)
	if err != nil || len(got) != 1 || got[0] != (Target{"vda", "/dir/vda.qcow2", qcow2.Qcow2}) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := TargetsIn(m, nil, "/dir", qcow2.Raw); !errors.Is(err, usage.ErrWrong) {
		t.Errorf("a name that leaves the folder: %v, %v", got, err)
	}
	if got, err := TargetsIn(m, []string{"vd"}, "/dir", qcow2.Raw); !errors.Is(err, view.ErrUnknownDisk) {
		t.Errorf("an unknown disk: %v, %v", got, err)
	}
}

func TestForceReplacesAndKeepsAccess(t *testing.T) {
	t.Parallel()
	r, m, disks := twoDisks(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "vda.raw")
	if err := os.WriteFile(path, []byte("old"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(context.Background(), r.repo, m, []Target{{"vda", path, qcow2.Raw}}, Options{Force: true}); err != nil {
		t.Fatal(err)
	}
	checkRestored(t, path, qcow2.Raw, disks[0].content)
	fi, err := os.Stat(path)
	if err != nil || fi.Mode() != 0o640 {
		t.Errorf("mode %v (%v)", fi.Mode(), err)
	}
	if got := testkit.Names(t, dir); len(got) != 1 {
		t.Errorf("the folder has %q", got)
	}
}

func TestMakeDir(t *testing.T) {
	t.Parallel()
	r, m, disks := twoDisks(t)
	dir := t.TempDir()
	made := filepath.Join(dir, "made")
	targets := []Target{{"vda", filepath.Join(made, "vda.raw"), qcow2.Raw}}
	if _, err := Run(context.Background(), r.repo, m, append(targets, Target{"vdx", made + "/y", qcow2.Raw}), Options{MakeDir: made}); err == nil {
		t.Error("no error")
	}
	empty(t, dir)
	for range 2 { // a folder that was there stays, whatever happens
		_, err := Run(context.Background(), r.repo, m, targets, Options{MakeDir: made})
		if err != nil && !errors.Is(err, ErrTargetExists) {
			t.Fatal(err)
		}
	}
	checkRestored(t, targets[0].Path, qcow2.Raw, disks[0].content)
}
