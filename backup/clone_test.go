// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
)

// TestClone tries what needs a file system that clones, on each that there is.
func TestClone(t *testing.T) {
	t.Parallel()
	folders, here := testkit.OnCloning(t)
	if !here {
		return
	}
	for _, on := range folders {
		for name, try := range map[string]func(*lab){
			"guest writes": (*lab).cloneWhileTheGuestWrites, "retires later": (*lab).cloneRetiresLater, "fails": (*lab).cloneFails,
		} {
			t.Run(on.Kind+"/"+name, func(t *testing.T) {
				images := filepath.Join(on.Dir, name)
				if err := os.Mkdir(images, 0o755); err != nil {
					t.Fatal(err)
				}
				try(newLabIn(t, images, t.TempDir()))
			})
		}
	}
}

// cloned asks for a backup of clones.
func (l *lab) cloned(checkpoint string, disks ...backup.DiskRequest) backup.Request {
	req := l.request(checkpoint, disks...)
	req.Clone = backup.CloneAlways
	return req
}

// begins calls do when a step is about to begin.
func begins(step string, do func()) backup.Hooks {
	return backup.Hooks{Step: func(name string) {
		if name == step {
			do()
		}
	}}
}

// A VM that starts as soon as the locks go, and writes, does not reach what is archived; and what it
// has written is in the next increment.
func (l *lab) cloneWhileTheGuestWrites() {
	l.create("base", "8M")
	l.write("base", "write -P 9 4M 1M")
	l.overlay("vda", "base")
	l.write("vda", "write -P 1 0 1M", "write -P 2 3M 700k")
	l.must(os.WriteFile(l.path("vdb"), make([]byte, 3<<20), 0o644))
	second := backup.DiskRequest{Disk: "vdb", Path: l.path("vdb"), Format: qcow2.Raw}
	for i, checkpoint := range []string{"c1", "c2", "c3", "c4"} {
		req := l.cloned(checkpoint, l.disk("vda"), second)
		for _, d := range req.Disks {
			l.remember(req.Domain, checkpoint, d)
		}
		started := 0
		r, err := l.run(req, begins(backup.StepReleased, func() {
			started++
			// The base is written to as by a commit of a snapshot.
			l.write("base", "write -P 8 4M 64k")
			l.write("vda", "write -P 7 0 64k", "write -z 3M 64k", "discard 512k 64k")
			l.writeAs("raw", "vdb", "write -P 6 1M 4k")
			l.overlay("over", "vda")
			l.must(os.Remove(l.path("over")))
		}))
		l.must(err)
		if started != 1 || !r.Cloned || r.NotCloned != "" || r.Locked <= 0 || r.Locked > r.Elapsed {
			l.t.Errorf("%s: released %d times: %+v", checkpoint, started, r)
		}
		if names := testkit.Names(l.t, l.images); len(names) != 3 {
			l.t.Errorf("%s left %q", checkpoint, names)
		}
		if i > 0 {
			// The base was written to past the overlay's bitmap.
			l.write("vda", "write -P 5 2M 64k")
		}
	}
	l.restoreAll()
}

// Bitmaps that are not needed any more are removed by the next run, before it adds its own.
func (l *lab) cloneRetiresLater() {
	l.create("vda", "4M")
	want := [][]string{{"c1"}, {"c1", "c2"}, {"c1", "c2", "c3"}, {"c2", "c3", "c4"}}
	for i, checkpoint := range []string{"c1", "c2", "c3", "c4"} {
		l.write("vda", "write -P 1 0 64k")
		l.remember("vm", checkpoint, l.disk("vda"))
		r, err := l.run(l.cloned(checkpoint, l.disk("vda")), begins(backup.StepReleased, func() {
			l.write("vda", "write -P 2 1M 64k", "write -P 3 0 4k")
		}))
		l.must(err)
		if i > 0 {
			l.trusted(r, "c"+string(rune('0'+i)))
		}
		l.holds("vda", want[i]...)
		if n := l.intents("vm"); n != i/2 {
			l.t.Errorf("%d intents after %s", n, checkpoint)
		}
	}
	// One that does not clone puts all of it right.
	l.trusted(l.backup("c5", l.disk("vda")), "c4")
	l.holds("vda", "c4", "c5")
	if n := l.intents("vm"); n != 0 {
		l.t.Errorf("%d intents are left", n)
	}
	l.restoreAll()
}

// What failed when a VM could have the image touches it no more, and neither does a run that finds
// it in use; the one after that puts all right.
func (l *lab) cloneFails() {
	for _, step := range []string{backup.StepReleased, backup.StepRead, backup.StepStored, backup.StepCommit} {
		name := "vm-" + step
		l.create(name, "4M")
		l.write(name, "write -P 1 0 1M")
		first := l.request("first-"+name, l.disk(name))
		first.Domain = name
		l.backupAs(first)
		l.write(name, "write -P 2 1M 64k")
		ctx, cancel := context.WithCancel(l.t.Context())
		req := l.cloned("failed-"+name, l.disk(name))
		req.Domain = name
		var running string
		_, err := backup.Run(ctx, l.repo, req, begins(step, func() {
			l.write(name, "write -P 3 2M 64k")
			running = l.state(l.path(name))
			cancel()
		}))
		if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "the next backup of "+name+" takes it out") {
			l.t.Errorf("%s: %v", name, err)
		}
		if l.state(l.path(name)) != running {
			l.t.Errorf("%s: a run that failed has written to an image that a VM had", name)
		}
		l.holds(name, "failed-"+name, "first-"+name)
		// The VM runs when the next backup comes.
		req.Checkpoint = "second-" + name
		if step == backup.StepStored { // each waits for a while
			vm := testkit.HoldWithIO(l.t, l.path(name))
			running = l.state(l.path(name))
			var inUse *qemu.InUseError
			if _, err := l.run(req, backup.Hooks{}); !errors.As(err, &inUse) {
				l.t.Errorf("%s: a backup of an image in use: %v", name, err)
			}
			if l.state(l.path(name)) != running {
				l.t.Errorf("%s: an image in use was written to", name)
			}
			vm.End()
		}
		if n := l.intents(name); n != 1 {
			l.t.Errorf("%s: %d intents, want the one that was left", name, n)
		}
		r := l.backupAs(req)
		l.trusted(r, "first-"+name)
		l.holds(name, "first-"+name, "second-"+name)
		if n := l.intents(name); n != 0 {
			l.t.Errorf("%s: %d intents are left", name, n)
		}
	}
	l.restoreAll()
}

// Where files can't be cloned, always fails before anything is written, and auto goes on.
func TestCloneElsewhere(t *testing.T) {
	t.Parallel()
	l := newLabIn(t, shm(t), t.TempDir())
	l.create("vda", "4M")
	l.write("vda", "write -P 1 0 1M")
	l.unchanged(func() {
		if _, err := l.run(l.cloned("c1", l.disk("vda")), backup.Hooks{}); err == nil || !strings.Contains(err.Error(), "can't be cloned") {
			t.Errorf("always: %v", err)
		}
	})
	req := l.request("c1", l.disk("vda"))
	req.Clone = backup.CloneAuto
	if r := l.backupAs(req); r.Cloned || !strings.Contains(r.NotCloned, "can't be cloned") || r.Locked <= 0 {
		t.Errorf("auto: %+v", r)
	}
	req = l.cloned("c2", l.disk("vda"))
	req.NoLock = true
	if _, err := l.run(req, backup.Hooks{}); err == nil || !strings.Contains(err.Error(), "exclude each other") {
		t.Errorf("without locks: %v", err)
	}
	l.restoreAll()
}

// shm is a folder on a tmpfs, which clones nothing.
func shm(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "imgbackup-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
