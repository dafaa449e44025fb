// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
)

// at runs do when the backup comes to a step for the nth time, from 1 on, and
// the returned function reports whether it did.
func at(step string, nth int, do func()) (backup.Hooks, func() bool) {
	seen := 0
	return backup.Hooks{Step: func(name string) {
		if name == step {
			if seen++; seen == nth {
				do()
			}
		}
	}}, func() bool { return seen >= nth }
}

// inUse checks that err says which file is in use.
func (l *lab) inUse(err error, name string) {
	l.t.Helper()
	var use *qemu.InUseError
	if !errors.As(err, &use) {
		l.t.Fatalf("got %v, want an InUseError", err)
	}
	if use.Path != l.path(name) || !strings.Contains(err.Error(), l.path(name)) {
		l.t.Errorf("%v is about %s, want %s", err, use.Path, l.path(name))
	}
}

// Programs that do not know QEMU's locks write to a file of the chain while it
// is read: seen by its times, size or number.
func TestTrustWrittenWhileRead(t *testing.T) {
	t.Parallel()
	// Beyond the header and before the end: the same bytes are written again.
	rewrite := func(l *lab, name string) {
		info, err := os.Stat(l.path(name))
		l.must(err)
		l.patch(name, info.Size()-1, []byte{l.byteAt(name, info.Size()-1)})
	}
	for _, tt := range []struct {
		name string
		file string
		do   func(l *lab, name string)
	}{
		{"write", "vda", rewrite},
		{"write to the backing file", "base", rewrite},
		{"grown", "vda", func(l *lab, name string) {
			info, err := os.Stat(l.path(name))
			l.must(err)
			l.must(os.Truncate(l.path(name), info.Size()+512))
		}},
		{"times changed", "vda", func(l *lab, name string) {
			l.must(os.Chtimes(l.path(name), time.Time{}, time.Unix(1, 0)))
		}},
		{"exchanged", "base", func(l *lab, name string) {
			l.tool("cp", "-p", name, "copy")
			l.tool("mv", "copy", name)
		}},
		{"a loop mount", "raw", func(l *lab, name string) {
			// Not everywhere, and not by everyone; then it is a plain write.
			out, err := exec.CommandContext(l.t.Context(), "losetup", "--find", "--show", l.path(name)).Output()
			if err != nil {
				l.t.Logf("no loop device can be had (%v): written to the file", err)
				rewrite(l, name)
				return
			}
			device := strings.TrimSpace(string(out))
			defer l.tool("losetup", "--detach", device)
			l.tool("dd", "if=/dev/zero", "of="+device, "bs=4096", "count=1", "seek=3", "conv=fsync,notrunc")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			overBase(l)
			l.img("create", "-q", "-f", "raw", "raw", "1M")
			l.writeAs("raw", "raw", "write -P 1 0 1M")
			raw := l.diskAs("raw", "raw")
			raw.Disk = "vdb"
			req := l.request("c2", l.disk("vda"), raw)
			for _, step := range []string{backup.StepRead, backup.StepStored} {
				hooks, hit := at(step, 1, func() { tt.do(l, tt.file) })
				l.inUse(l.fails(req, hooks), tt.file)
				if !hit() {
					t.Fatalf("the backup never came to step %s", step)
				}
			}
			l.backupAs(req)
			l.restoreAll()
		})
	}
}

// A VM that has the image open is told by QEMU's locks, at whatever time it
// comes, and nothing is written.
func TestTrustVMRunning(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	twoCheckpoints(l)
	nbd := l.nbd("vda")
	for _, mode := range []backup.Mode{backup.Auto, backup.Full, backup.Incremental} {
		req := l.request("c3", l.disk("vda"))
		req.Mode = mode
		l.unchanged(func() {
			_, err := l.run(req, backup.Hooks{})
			l.inUse(err, "vda")
			_, err = backup.DryRun(t.Context(), l.repo, req, backup.Hooks{})
			l.inUse(err, "vda")
		})
	}
	nbd()
	l.trusted(l.backup("c3", l.disk("vda")), "c2")
	l.restoreAll()
}

// Who only reads the image keeps the new bitmap out of it, and no more. A VM that
// starts before the image is locked ends the backup.
func TestTrustReaderAtWork(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	twoCheckpoints(l)
	nbd := l.nbd("vda", "-r")
	r := l.withoutBitmap(l.request("c3", l.disk("vda")), "is in use")
	l.trusted(r, "c2")
	nbd()
	hooks, started := at(backup.StepAdd, 1, func() { nbd = l.nbd("vda") })
	_, err := l.run(l.request("c4", l.disk("vda")), hooks)
	l.inUse(err, "vda")
	if !started() {
		t.Error("no VM started")
	}
	nbd()
	l.trusted(l.backup("c4", l.disk("vda")), "c2")
	l.restoreAll()
}

// nbd lets qemu-nbd hold an image as a VM does, and returns how to end it.
func (l *lab) nbd(name string, options ...string) (end func()) {
	l.t.Helper()
	return testkit.StartNBD(l.t, slices.Concat([]string{"-f", "qcow2"}, options, []string{l.path(name)})...).End
}

// A program that only reads is no reason not to back up.
func TestTrustReaderHolds(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	twoCheckpoints(l)
	end := l.nbd("vda", "-r")
	req := l.request("c3", l.disk("vda"))
	req.NoCheckpoint = true
	l.trusted(l.backupAs(req), "c2")
	l.holds("vda", "c1", "c2")
	end()
	l.write("vda", "write -P 7 7M 64k")
	// c3 has no bitmap: what changed since is known since c2.
	l.trusted(l.backup("c4", l.disk("vda")), "c2")
	l.restoreAll()
}

// A VM runs between the plan and the locks.
func TestTrustVMInBetween(t *testing.T) {
	t.Parallel()
	for name, do := range map[string]func(l *lab){
		"after the plan":   func(l *lab) { l.write("vda", "write -P 9 3M 64k") },
		"after the bitmap": nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			twoCheckpoints(l)
			step := backup.StepAdd
			if do == nil {
				step = backup.StepAdded
				do = func(l *lab) { l.write("vda", "write -P 9 3M 64k") }
			}
			hooks, hit := at(step, 1, func() { do(l) })
			r, err := l.run(l.request("c3", l.disk("vda")), hooks)
			l.must(err)
			if !hit() {
				t.Fatalf("the backup never came to step %s", step)
			}
			l.remember("vm", "c3", l.disk("vda")) // the write came first
			l.trusted(r, "c2")
			l.holds("vda", "c2", "c3")
			l.restoreAll()
		})
	}
}

// A VM that never lets us begin.
func TestTrustVMAgainAndAgain(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	twoCheckpoints(l)
	hooks := backup.Hooks{Step: func(step string) {
		if step == backup.StepAdded {
			l.write("vda", "write -P 9 3M 64k")
		}
	}}
	_, err := l.run(l.request("c3", l.disk("vda")), hooks)
	l.inUse(err, "vda")
	l.holds("vda", "c1", "c2")
	l.trusted(l.backup("c3", l.disk("vda")), "c2")
	l.restoreAll()
}

// An image that was cut short is damaged: never an empty increment, never
// zeros.
func TestTrustCutShort(t *testing.T) {
	t.Parallel()
	for _, mode := range []backup.Mode{backup.Auto, backup.Full, backup.Incremental} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			twoCheckpoints(l)
			info, err := os.Stat(l.path("vda"))
			l.must(err)
			data, err := os.ReadFile(l.path("vda"))
			l.must(err)
			damaged := 0
			for size := info.Size() - 512; size > 0; size -= 200 << 10 {
				name := fmt.Sprintf("cut-to-%d", size)
				l.must(os.WriteFile(l.path("vda"), data, 0o644))
				l.remember("vm", name, l.disk("vda"))
				l.must(os.Truncate(l.path("vda"), size))
				before := l.state(l.repoDir, l.images)
				req := l.request(name, l.disk("vda"))
				req.Mode = mode
				_, err := l.run(req, backup.Hooks{})
				if err == nil {
					continue // only bitmaps are lost, and the data are right, see below
				}
				l.taken = l.taken[:len(l.taken)-1]
				var damage *qcow2.DamageError
				var trust *backup.NotTrustedError
				switch {
				case errors.As(err, &damage):
					damaged++
				case !errors.As(err, &trust) || mode != backup.Incremental:
					t.Errorf("cut to %d bytes: %v, want a DamageError", size, err)
				}
				if after := l.state(l.repoDir, l.images); after != before {
					t.Errorf("cut to %d bytes: repository or image have changed:\n%s", size, differences(before, after))
				}
			}
			if damaged < 10 && mode != backup.Incremental {
				t.Errorf("damage was found %d times, too seldom", damaged)
			}
			l.restoreAll()
		})
	}
}

// Nothing is committed, and no bitmap stays, when it takes too long.
func TestTrustMaxLock(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	twoCheckpoints(l)
	req := l.request("c3", l.disk("vda"))
	req.Mode = backup.Full
	req.MaxLock = time.Nanosecond
	var late *backup.LockTimeError
	if err := l.fails(req, backup.Hooks{}); !errors.As(err, &late) {
		t.Errorf("got %v, want a LockTimeError", err)
	}
	// The rate holds up what would else be done in no time.
	req.MaxLock = 2 * time.Second
	req.RateLimit = 1
	read := false
	hooks, _ := at(backup.StepRead, 1, func() { read = true })
	if err := l.fails(req, hooks); !errors.As(err, &late) {
		t.Errorf("got %v, want a LockTimeError", err)
	}
	if !read {
		t.Log("the time was up before the data were read")
	}
	req.RateLimit, req.MaxLock = 1<<40, time.Hour
	l.expect(l.backupAs(req), "vda", backup.Full, backup.ByNothing, trust.ReasonRequested)
	l.restoreAll()
}

func TestTrustNoLock(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	twoCheckpoints(l)
	req := l.request("c3", l.disk("vda"))
	req.NoLock = true
	r := l.backupAs(req)
	if r.Manifest.Locking != chain.LockingNone {
		t.Errorf("locking is %q, want %q", r.Manifest.Locking, chain.LockingNone)
	}
	if r := l.manifest("c2"); r.Locking != chain.LockingQEMU {
		t.Errorf("locking is %q, want %q", r.Locking, chain.LockingQEMU)
	}
	l.restoreAll()
}

// A name that is taken, at the beginning or only at the end.
func TestTrustNameTaken(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	twoCheckpoints(l)
	var taken *chain.TakenError
	l.unchanged(func() {
		if err := l.fails(l.request("c2", l.disk("vda")), backup.Hooks{}); !errors.As(err, &taken) {
			t.Errorf("got %v, want a TakenError", err)
		}
	})
	hooks, hit := at(backup.StepCommit, 1, func() {
		other := l.manifest("c2")
		other.Checkpoint, other.UUID = "c3", chain.NewUUID()
		other.Disks[0].Bitmap = chain.BitmapName(other.Checkpoint, other.UUID)
		l.must(l.repo.Commit(t.Context(), other))
	})
	_, err := l.run(l.request("c3", l.disk("vda")), hooks)
	if !errors.As(err, &taken) || !hit() {
		t.Errorf("got %v, want a TakenError", err)
	}
	l.holds("vda", "c1", "c2")
	for _, dir := range []string{"/domains/vm/intents", "/leases"} {
		// A folder for each host stays.
		files, err := filepath.Glob(l.repoDir + dir + "/*/*.json")
		more, merr := filepath.Glob(l.repoDir + dir + "/*.json")
		if files = append(files, more...); len(files) > 0 || err != nil || merr != nil {
			t.Errorf("%s holds %v", dir, files)
		}
	}
	l.restoreAll()
}

// Of two disks the second fails: nothing is committed, and no bitmap stays in
// the first.
func TestTrustSecondDiskFails(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	vda, vdb := twoDisks(l)
	req := l.request("c2", vda, vdb)
	hooks, hit := at(backup.StepStored, 1, func() { l.patch("vdb", 1<<20, []byte{l.byteAt("vdb", 1<<20)}) })
	l.inUse(l.fails(req, hooks), "vdb")
	if !hit() {
		t.Fatal("nothing was stored")
	}

	// The second image is gone when its bitmap is to be added: the first's
	// cannot be undone together with it, so the next run does that.
	hooks, hit = at(backup.StepAdd, 2, func() { l.tool("mv", "vdb", "away") })
	if _, err := l.run(req, hooks); err == nil || !hit() {
		t.Fatalf("got %v", err)
	}
	l.tool("mv", "away", "vdb")
	r := l.backupAs(req)
	for _, target := range []string{"vda", "vdb"} {
		l.expect(r, target, backup.Incremental, backup.ByBitmap, trust.ReasonTrusted)
		l.holds(target, "c1", "c2")
	}
	l.restoreAll()
}

// Refcounts that are wrong would let qemu-img overwrite guest data.
func TestTrustWrongRefcounts(t *testing.T) {
	t.Parallel()
	for _, mode := range []backup.Mode{backup.Auto, backup.Full, backup.Incremental} {
		l := newLab(t)
		req := l.request("after", l.disk("vda"))
		req.Mode = mode
		want := []any{backup.Full, backup.ByNothing, trust.ReasonFirst}
		switch mode {
		case backup.Full:
			twoCheckpoints(l)
			want[2] = trust.ReasonRequested
		case backup.Incremental:
			twoCheckpoints(l)
			want = []any{backup.Incremental, backup.ByBitmap, trust.ReasonTrusted}
		default:
			l.create("vda", "8M")
			l.write("vda", "write -P 1 0 2M")
			l.img("bitmap", "--add", "vda", "another")
		}
		// The refcount of the last data cluster that was written becomes 0.
		l.dropRefcount("vda")
		before := l.state(l.images)
		d := l.expect(l.backupAs(req), "vda", want[0].(backup.Mode), want[1].(backup.Detection), want[2].(trust.Reason))
		if d.Bitmap != "" || !strings.Contains(d.NoBitmapReason, "refcounts are wrong") {
			t.Errorf("bitmap %q was added (%q)", d.Bitmap, d.NoBitmapReason)
		}
		if l.state(l.images) != before {
			t.Error("the image was written to")
		}
		l.restoreAll()
	}
}

// dropRefcount sets the refcount of the image's cluster 6 to 0, which holds
// guest data in an image as QEMU lays it out.
func (l *lab) dropRefcount(name string) {
	l.t.Helper()
	var table, block [8]byte
	read := func(p []byte, at int64) uint64 {
		var n uint64
		for i := range p {
			n = n<<8 | uint64(l.byteAt(name, at+int64(i)))
		}
		return n
	}
	offset := read(table[:], 48)
	first := read(block[:], int64(offset))
	l.patch(name, int64(first)+6*2, []byte{0, 0})
	cmd := exec.CommandContext(l.t.Context(), "qemu-img", "check", l.path(name))
	if out, err := cmd.CombinedOutput(); err == nil {
		l.t.Fatalf("the refcounts are still right: %s", out)
	}
}

// A damaged archive is no base: the one before it is, by its own bitmap.
func TestTrustArchiveDamaged(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	twoCheckpoints(l)
	d, _ := l.manifest("c2").Disk("vda")
	key := l.repoDir + "/" + archive.MapKey(d.Maps[0].Name)
	l.must(os.Remove(key))
	l.must(os.WriteFile(key, []byte("damage"), 0o644))
	l.trusted(l.backup("c3", l.disk("vda")), "c1")
	l.taken = append(l.taken[:1], l.taken[2:]...)
	l.restoreAll()
}
