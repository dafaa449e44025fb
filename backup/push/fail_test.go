// SPDX-License-Identifier: Apache-2.0

package push

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
	"github.com/imgbackup/imgbackup/qcow2"
)

var bothFormats = []qcow2.Format{qcow2.Raw, qcow2.Qcow2}

// twoDisks is a lab with the images a and b.
func twoDisks(t *testing.T) *lab {
	t.Helper()
	l := newLab(t)
	l.tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "a", "1M")
	l.tool("qemu-img", "create", "-q", "-f", "qcow2", "b", "3000K")
	l.write("a", "write -P 1 4k 300k", "write -P 2 512k 20k")
	l.write("b", "write -P 3 1M 1200k", "write -z 2M 64k")
	return l
}

// A file system that is full, at any write, leaves nothing.
func TestNoSpaceAtAnyWrite(t *testing.T) {
	t.Parallel()
	l := twoDisks(t)
	for _, format := range bothFormats {
		for fail := int64(1); ; fail++ {
			sys := system()
			var calls atomic.Int64
			sys.Pwrite = func(f *os.File, p []byte, off int64) (int, error) {
				if calls.Add(1) == fail {
					return 0, &os.PathError{Op: "write", Path: f.Name(), Err: unix.ENOSPC}
				}
				return f.WriteAt(p, off)
			}
			_, err := run(t.Context(), sys, l.repo, l.request("a", "b"), backup.Hooks{}, l.targets(format, "x", "y"), Options{})
			if err == nil {
				l.same("x", format, "a", qcow2.Qcow2)
				l.same("y", format, "b", qcow2.Qcow2)
				if fail < 5 {
					t.Errorf("only %d writes", fail-1)
				}
				break
			}
			if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "no space is left in "+l.dir) {
				t.Fatal(err)
			}
			l.onlyImages("a", "b")
		}
		for _, name := range []string{"x", "y"} {
			l.must(os.Remove(l.path(name)))
		}
	}
}

// Where a folder cannot be synced the disks are pushed all the same, with one note; a
// medium that fails is a failure, which leaves nothing.
func TestFolderThatCannotBeSynced(t *testing.T) {
	t.Parallel()
	l := twoDisks(t)
	for _, answer := range []error{unix.EIO, unix.EINVAL} {
		kernel := system()
		calls := 0
		kernel.Folders.Call = func(*os.File) error { calls++; return answer }
		var notes []string
		hooks := backup.Hooks{Note: func(msg string) { notes = append(notes, msg) }}
		_, err := run(t.Context(), kernel, l.repo, l.request("a", "b"), hooks, l.targets(qcow2.Raw, "x", "y"), Options{})
		if calls == 0 {
			t.Errorf("%v: no folder was synced", answer)
		}
		if answer == unix.EIO {
			if !errors.Is(err, answer) || len(notes) != 0 {
				t.Errorf("%v, notes %q", err, notes)
			}
			l.onlyImages("a", "b")
			continue
		}
		if err != nil || len(notes) != 1 || !strings.Contains(notes[0], l.dir) {
			t.Errorf("%v, notes %q", err, notes)
		}
		l.same("x", qcow2.Raw, "a", qcow2.Qcow2)
		l.same("y", qcow2.Raw, "b", qcow2.Qcow2)
	}
}

// Cancelled at any step of progress, a push leaves nothing, and is no success.
func TestCancel(t *testing.T) {
	t.Parallel()
	l := twoDisks(t)
	for stop := int64(1); ; stop++ {
		ctx, cancel := context.WithCancel(t.Context())
		var events atomic.Int64
		_, err := Run(ctx, l.repo, l.request("a", "b"), backup.Hooks{Progress: func(done, total int64) {
			if done > total {
				t.Errorf("progress %d of %d", done, total)
			}
			if events.Add(1) == stop {
				cancel()
			}
		}}, l.targets(qcow2.Qcow2, "x", "y"), Options{})
		cancelled := ctx.Err() != nil
		cancel()
		if !cancelled {
			if err != nil || stop < 4 {
				t.Errorf("after %d events: %v", stop, err)
			}
			break
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("cancelled at event %d: %v", stop, err)
		}
		l.onlyImages("a", "b")
	}
}

// The limit on reading is obeyed, and does not keep a push from being given up.
func TestCancelWhileLimited(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "a", "3M")
	l.write("a", "write -P 1 768k 2M")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req := l.request("a")
	// The burst of 1 MiB is read at once: some samples and the first chunk; the
	// rest would take hours.
	req.RateLimit = 10
	_, err := Run(ctx, l.repo, req, backup.Hooks{Progress: func(done, _ int64) {
		if done > 0 {
			cancel()
		}
	}}, l.targets(qcow2.Raw, "x"), Options{Workers: 1})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	l.onlyImages("a")
}

// damage makes a cluster of guest data lie beyond the end of the image.
func (l *lab) damage(image string) {
	l.t.Helper()
	fi, err := os.Stat(l.path(image))
	l.must(err)
	l.must(os.Truncate(l.path(image), fi.Size()-128<<10))
}

// Failures of one disk, of the naming, or of the checkpoint: no file appears, what
// was to be replaced stays, and there is neither checkpoint nor bitmap.
func TestAllOrNothing(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	for what, c := range map[string]struct {
		prepare func(l *lab)
		pwrite  string // the target whose writes fail
		rename  int    // of the targets' names that fails, from 1
		fault   *objstoretest.Fault
		least   int64 // bytes that are read before it fails
		want    error
	}{
		"damaged disk": {prepare: func(l *lab) { l.damage("b") }},
		"second disk":  {pwrite: "y", least: 320 << 10, want: unix.EIO},
		"first name":   {rename: 1, least: 1400 << 10, want: unix.EIO},
		"second name":  {rename: 2, least: 1400 << 10, want: unix.EIO},
		"checkpoint":   {least: 1400 << 10, fault: &objstoretest.Fault{Op: objstoretest.Put, Prefix: "domains/vm/checkpoints/", Err: boom}, want: boom},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			l := twoDisks(t)
			l.must(os.WriteFile(l.path("y"), []byte("old"), 0o600))
			if c.prepare != nil {
				c.prepare(l)
			}
			sys, renames := system(), 0
			rename := sys.Rename
			sys.Rename = func(dir *os.File, from, to string, flags uint) error {
				if renames++; renames == c.rename {
					return unix.EIO
				}
				return rename(dir, from, to, flags)
			}
			sys.Pwrite = func(f *os.File, p []byte, off int64) (int, error) {
				if c.pwrite != "" && strings.HasPrefix(filepath.Base(f.Name()), "."+c.pwrite+".") {
					return 0, unix.EIO
				}
				return f.WriteAt(p, off)
			}
			repo := l.repo
			if c.fault != nil {
				repo = &chain.Repository{Store: objstoretest.NewFaulty(t, repo.Store, *c.fault), Config: repo.Config}
			}
			req := l.request("a", "b")
			req.Checkpoint = "c1"
			var read int64
			_, err := run(t.Context(), sys, repo, req, backup.Hooks{Progress: func(done, _ int64) { read = max(read, done) }},
				l.targets(qcow2.Qcow2, "x", "y"), Options{Force: true, Workers: 1})
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			var disk *chain.DiskError
			if errors.As(err, &disk) != (c.pwrite != "" || c.prepare != nil) || disk != nil && (disk.Disk != "vdb" || strings.Count(err.Error(), "disk vdb") != 1) {
				t.Errorf("the error names the disk otherwise: %v", err)
			}
			if read < c.least || renames < c.rename {
				t.Errorf("it failed early: %d bytes were read, %d names given", read, renames)
			}
			l.onlyImages("a", "b", "y")
			if got, err := os.ReadFile(l.path("y")); err != nil || string(got) != "old" {
				t.Errorf("the file that was there is now %q, %v", got, err)
			}
			l.noCheckpoint("c1", "a", "b")
		})
	}
}

// What is written in place comes after all files; when it fails the error says
// that it is incomplete, and no file appears.
func TestInPlaceIncomplete(t *testing.T) {
	t.Parallel()
	l := twoDisks(t)
	l.must(os.WriteFile(l.path("mirror"), bytes.Repeat([]byte{9}, 1<<20), 0o600))
	sys := system()
	hit := false
	sys.Pwrite = func(f *os.File, p []byte, off int64) (int, error) {
		if f.Name() == l.path("mirror") && off > 200<<10 {
			hit = true
			return 0, unix.EIO
		}
		return f.WriteAt(p, off)
	}
	targets := l.targets(qcow2.Raw, "mirror", "y")
	targets[0].Reuse = true
	written := int64(0)
	_, err := run(t.Context(), sys, l.repo, l.request("a", "b"), backup.Hooks{Progress: func(done, _ int64) { written = done }}, targets, Options{Workers: 1})
	if !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), l.path("mirror")+" holds is now incomplete") || !hit {
		t.Error(err)
	}
	if written < 1200<<10 {
		t.Errorf("only %d bytes were written before it: the file was to come first", written)
	}
	l.onlyImages("a", "b", "mirror")
	if got, err := os.ReadFile(l.path("mirror")); err != nil || got[4096] != 1 {
		t.Errorf("the file that is reused holds nothing of the disk (%v)", err)
	}
}

// Whatever is wrong with a target is found before anything is written.
func TestRefusals(t *testing.T) {
	t.Parallel()
	l := twoDisks(t)
	l.tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", "a", "-F", "qcow2", "over")
	l.must(os.Link(l.path("a"), l.path("hard")))
	l.must(os.Symlink("a", l.path("link")))
	l.must(os.WriteFile(l.path("old"), []byte("old"), 0o600))
	before := l.listing()
	mk := func(disk, path string, format qcow2.Format) Target {
		return Target{Disk: disk, Path: l.path(path), Format: format}
	}
	raw, q := qcow2.Raw, qcow2.Qcow2
	with := func(t Target, change func(*Target)) []Target {
		change(&t)
		return []Target{t}
	}
	for what, c := range map[string]struct {
		images  []string
		targets []Target
		o       Options
		want    error
		text    string
	}{
		"none":                {targets: nil, want: usage.ErrWrong, text: "no target"},
		"a mixture":           {images: []string{"a", "b"}, targets: []Target{mk("vda", "x", raw)}, want: usage.ErrWrong, text: "vdb has no target"},
		"unknown disk":        {targets: []Target{mk("vda", "x", raw), mk("vdz", "y", raw)}, want: usage.ErrWrong, text: "vdz"},
		"twice":               {targets: []Target{mk("vda", "x", raw), mk("vda", "y", raw)}, want: usage.ErrWrong, text: "two targets"},
		"the same":            {images: []string{"a", "b"}, targets: []Target{mk("vda", "x", raw), mk("vdb", "x", q)}, want: usage.ErrWrong, text: "both go to"},
		"format":              {targets: []Target{mk("vda", "x", "vmdk")}, want: usage.ErrWrong},
		"exists":              {targets: []Target{mk("vda", "old", raw)}, want: ErrTargetExists, text: "--force"},
		"no folder":           {targets: []Target{mk("vda", "no/x", raw)}, want: fs.ErrNotExist},
		"symbolic link":       {targets: []Target{mk("vda", "link", raw)}, o: Options{Force: true}, text: "symbolic link"},
		"the image":           {targets: []Target{mk("vda", "a", q)}, o: Options{Force: true}, want: usage.ErrWrong, text: "image of the domain itself"},
		"the image, reused":   {targets: with(mk("vda", "a", raw), func(t *Target) { t.Reuse = true }), want: usage.ErrWrong, text: "image of the domain itself"},
		"its hard link":       {targets: []Target{mk("vda", "hard", raw)}, o: Options{Force: true}, want: usage.ErrWrong, text: "image of the domain itself"},
		"its backing file":    {images: []string{"over"}, targets: []Target{mk("vda", "a", q)}, o: Options{Force: true}, want: usage.ErrWrong, text: "image of the domain itself"},
		"another disk's":      {images: []string{"a", "b"}, targets: []Target{mk("vda", "b", raw), mk("vdb", "y", q)}, o: Options{Force: true}, want: usage.ErrWrong, text: "image of the domain itself"},
		"nothing to reuse":    {targets: with(mk("vda", "x", raw), func(t *Target) { t.Reuse = true }), want: fs.ErrNotExist},
		"reuse of a qcow2":    {targets: with(mk("vda", "old", q), func(t *Target) { t.Reuse = true }), want: usage.ErrWrong},
		"full over a backing": {targets: with(mk("vda", "x", q), func(t *Target) { t.Backing = &qcow2.CreateBacking{File: "a", Format: q} }), want: usage.ErrWrong, text: "full"},
		"raw over a backing":  {targets: with(mk("vda", "x", raw), func(t *Target) { t.Backing = &qcow2.CreateBacking{File: "a", Format: q} }), want: usage.ErrWrong},
		"clusters of raw":     {targets: with(mk("vda", "x", raw), func(t *Target) { t.ClusterSize = 512 }), want: usage.ErrWrong},
		"odd clusters":        {targets: with(mk("vda", "x", q), func(t *Target) { t.ClusterSize = 1000 }), want: usage.ErrWrong},
		"backing over NBD":    {targets: with(mk("vda", "x", q), func(t *Target) { t.Backing = &qcow2.CreateBacking{File: "nbd:x", Format: q} }), want: usage.ErrWrong},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			if c.images == nil {
				c.images = []string{"a"}
			}
			for _, checkpoint := range []string{"", "c1"} {
				req := l.request(c.images...)
				req.Checkpoint = checkpoint
				req.LockWait = 10 * time.Second // others look at the same images at the same time
				for name, do := range map[string]func() error{
					"run": func() error {
						_, err := Run(t.Context(), l.repo, req, backup.Hooks{Step: func(s string) {
							if s != backup.StepPlan {
								t.Errorf("it came as far as %s", s)
							}
						}}, c.targets, c.o)
						return err
					},
					"dry run": func() error {
						_, err := DryRun(t.Context(), l.repo, req, backup.Hooks{}, c.targets, c.o)
						return err
					},
				} {
					err := do()
					if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
						t.Errorf("%s: got %v, want %v with %q", name, err, c.want, c.text)
					}
				}
			}
		})
	}
	t.Cleanup(func() {
		if after := l.listing(); !slices.Equal(before, after) {
			t.Errorf("the folder had %q, has %q", before, after)
		}
	})
}

// listing is what the folder holds, with the content of files.
func (l *lab) listing() []string {
	l.t.Helper()
	entries, err := os.ReadDir(l.dir)
	l.must(err)
	var list []string
	for _, e := range entries {
		data, err := os.ReadFile(l.path(e.Name()))
		l.must(err)
		list = append(list, fmt.Sprintf("%s %x", e.Name(), digest(data)))
	}
	return list
}

// A file or block device that is written to in place reads as the disk
// afterwards, zeros included, and keeps what an incremental does not touch.
func TestDevice(t *testing.T) {
	t.Parallel()
	l := twoDisks(t)
	req := l.request("a")
	l.must(os.WriteFile(l.path("device"), bytes.Repeat([]byte{0xaa}, 1<<20+4096), 0o600))
	sys := system()
	sys.IsDevice = func(fi fs.FileInfo) bool { return fi.Name() == "device" }
	sys.OpenDevice = func(path string) (*os.File, error) { return os.OpenFile(path, os.O_RDWR, 0) }
	device := l.targets(qcow2.Raw, "device")
	if _, err := run(t.Context(), sys, l.repo, req, backup.Hooks{}, device, Options{}); !errors.Is(err, ErrTargetExists) {
		t.Errorf("without force: %v", err)
	}
	if _, err := run(t.Context(), sys, l.repo, req, backup.Hooks{}, l.targets(qcow2.Qcow2, "device"), Options{Force: true}); !errors.Is(err, usage.ErrWrong) {
		t.Errorf("as qcow2: %v", err)
	}
	if _, err := run(t.Context(), sys, l.repo, l.request("b"), backup.Hooks{}, device, Options{Force: true}); err == nil || !strings.Contains(err.Error(), "the disk needs") {
		t.Errorf("too small: %v", err)
	}
	req.Checkpoint = "c1"
	res, err := run(t.Context(), sys, l.repo, req, backup.Hooks{}, device, Options{Force: true})
	l.must(err)
	if !res.Disks[0].InPlace {
		t.Errorf("result %+v", res.Disks[0])
	}
	l.sameAs("device", "a", 0xaa)
	// What the incremental does not touch stays, be it right or not.
	l.write("a", "write -P 7 256k 64k", "write -z 512k 4k", "discard 516k 4k")
	f, err := os.OpenFile(l.path("device"), os.O_RDWR, 0)
	l.must(err)
	_, err = f.WriteAt([]byte("theirs"), 900<<10)
	l.must(errors.Join(err, f.Close()))
	req.Checkpoint, req.Mode, req.Since = "", backup.Incremental, "c1"
	device[0].Reuse = true
	_, err = run(t.Context(), sys, l.repo, req, backup.Hooks{}, device, Options{})
	l.must(err)
	got, err := os.ReadFile(l.path("device"))
	l.must(err)
	if string(got[900<<10:900<<10+6]) != "theirs" {
		t.Error("what had not changed was written to")
	}
	f, err = os.OpenFile(l.path("device"), os.O_RDWR, 0)
	l.must(err)
	_, err = f.WriteAt(make([]byte, 6), 900<<10)
	l.must(errors.Join(err, f.Close()))
	l.sameAs("device", "a", 0xaa)
}

// sameAs demands that a file begins with what the image's disk holds, and goes on
// with one byte.
func (l *lab) sameAs(file, image string, rest byte) {
	l.t.Helper()
	l.tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, "was.raw")
	want, err := os.ReadFile(l.path("was.raw"))
	l.must(err)
	if !filepath.IsAbs(file) {
		file = l.path(file)
	}
	got, err := os.ReadFile(file)
	l.must(err)
	if n := len(want); !bytes.Equal(got[:n], want) || bytes.Count(got[n:], []byte{rest}) != len(got)-n {
		l.t.Fatalf("%s differs from %s", file, image)
	}
}

// A loop device, where this machine lets us have one.
func TestLoopDevice(t *testing.T) {
	t.Parallel()
	l := twoDisks(t)
	l.must(os.WriteFile(l.path("file"), bytes.Repeat([]byte{0xaa}, 1<<20), 0o600))
	out, err := exec.Command("losetup", "--find", "--show", l.path("file")).CombinedOutput()
	if err != nil {
		t.Logf("only a pretended device was tested: losetup: %v: %s", err, out)
		return
	}
	device := strings.TrimSpace(string(out))
	defer l.tool("losetup", "--detach", device)
	l.push(l.request("a"), []Target{{Disk: "vda", Path: device, Format: qcow2.Raw}}, Options{Force: true})
	l.sameAs(device, "a", 0xaa)
}
