// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/outfile"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
	"github.com/imgbackup/imgbackup/qcow2"
)

var bothFormats = []qcow2.Format{qcow2.Raw, qcow2.Qcow2}

func mustTargets(t *testing.T, m *chain.Manifest, dir string, format qcow2.Format) []Target {
	t.Helper()
	targets, err := TargetsIn(m, nil, dir, format)
	if err != nil {
		t.Fatal(err)
	}
	return targets
}

// objects lists the keys of a repository.
func (r *testRepo) objects(t *testing.T, prefix string) []string {
	t.Helper()
	var keys []string
	for info, err := range r.store.List(context.Background(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, info.Key)
	}
	if len(keys) == 0 {
		t.Fatalf("nothing under %s", prefix)
	}
	return keys
}

// A flipped bit anywhere in what is read ends in a DamageError that names object
// and disk, with no output; nowhere does it end in wrong bytes.
func TestDamage(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	r := newTestRepo(t)
	rng := rand.New(rand.NewPCG(3, 3))
	disks := []*testDisk{newTestDisk("vda", 300<<10, rng), newTestDisk("vdb", 20<<10, rng)}
	r.archive(t, disks...)
	disks[1].write(1024, 9000, rng)
	disks[1].write(12<<10, 16<<10, nil)
	m := r.archive(t, disks...)
	dir := t.TempDir()
	hits := 0
	for _, prefix := range []string{archive.MapPrefix, archive.PackPrefix} {
		for _, key := range r.objects(t, prefix) {
			data, err := objstore.ReadAll(ctx, r.store, key, 1<<30)
			if err != nil {
				t.Fatal(err)
			}
			step := max(1, len(data)/150)
			for at := rng.IntN(step); at < len(data); at += step {
				bad := bytes.Clone(data)
				bad[at] ^= 1 << rng.IntN(8)
				if err := r.store.Put(ctx, key, bytes.NewReader(bad), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
					t.Fatal(err)
				}
				targets := mustTargets(t, m, dir, bothFormats[at%2])
				_, err := Run(ctx, r.repo, m, targets, Options{})
				if err == nil { // what is hit was not needed: a pack's table, a superseded map or chunk
					for i, tg := range targets {
						checkRestored(t, tg.Path, tg.Format, disks[i].content)
						for _, p := range []string{tg.Path, tg.Path + ".raw"} {
							_ = os.Remove(p)
						}
					}
					continue
				}
				hits++
				var where *DamageError
				var what *archive.DamageError
				if !errors.As(err, &where) || !errors.As(err, &what) || what.Object != key ||
					where.Disk != "vda" && where.Disk != "vdb" || where.Start < 0 || where.End < where.Start || where.End > 300<<10 {
					t.Fatalf("a flipped bit at %d of %s: %v", at, key, err)
				}
				empty(t, dir)
			}
			if err := r.store.Put(ctx, key, bytes.NewReader(data), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if hits < 300 {
		t.Errorf("only %d damages were met", hits)
	}
}

// A missing or short object is damage; an outage is not.
func TestMissingIsDamageAndOutageIsNot(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for _, prefix := range []string{archive.MapPrefix, archive.PackPrefix} {
		r, m, _ := twoDisks(t)
		dir := t.TempDir()
		key := r.objects(t, prefix)[0]
		outage := errors.New("the network is down")
		faulty := &chain.Repository{Store: objstoretest.NewFaulty(t, r.store, objstoretest.Fault{Op: objstoretest.Get, Prefix: key, Err: outage}), Config: r.repo.Config}
		_, err := Run(ctx, faulty, m, mustTargets(t, m, dir, qcow2.Raw), Options{})
		if !errors.Is(err, outage) || archive.IsDamage(err) {
			t.Errorf("an outage at %s: %v", key, err)
		}
		empty(t, dir)
		data, err := objstore.ReadAll(ctx, r.store, key, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.store.Put(ctx, key, bytes.NewReader(data[:len(data)/2]), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
			t.Fatal(err)
		}
		if _, err := Run(ctx, r.repo, m, mustTargets(t, m, dir, qcow2.Raw), Options{}); !archive.IsDamage(err) {
			t.Errorf("%s cut in half: %v", key, err)
		}
		empty(t, dir)
		if err := r.store.Delete(ctx, key); err != nil {
			t.Fatal(err)
		}
		if _, err := Run(ctx, r.repo, m, mustTargets(t, m, dir, qcow2.Qcow2), Options{}); !archive.IsDamage(err) || !strings.Contains(err.Error(), key) {
			t.Errorf("%s missing: %v", key, err)
		}
		empty(t, dir)
	}
}

// A file system that is full, at any write, leaves nothing.
func TestNoSpaceAtAnyWrite(t *testing.T) {
	t.Parallel()
	r, m, disks := twoDisks(t)
	for _, format := range bothFormats {
		dir := t.TempDir()
		for fail := int64(1); ; fail++ {
			sys := outfile.Linux()
			var calls atomic.Int64
			sys.Pwrite = func(f *os.File, p []byte, off int64) (int, error) {
				if calls.Add(1) == fail {
					return 0, &os.PathError{Op: "write", Path: f.Name(), Err: unix.ENOSPC}
				}
				return f.WriteAt(p, off)
			}
			targets := mustTargets(t, m, dir, format)
			_, err := run(context.Background(), sys, r.repo, m, targets, Options{})
			if err == nil {
				for i, tg := range targets {
					checkRestored(t, tg.Path, format, disks[i].content)
				}
				if fail < 10 {
					t.Errorf("only %d writes", fail-1)
				}
				break
			}
			if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "no space is left in "+dir) {
				t.Fatal(err)
			}
			empty(t, dir)
		}
	}
}

// The same on a real file system.
func TestNoSpaceOnTmpfs(t *testing.T) {
	t.Parallel()
	if !testkit.InNamespace(t, 0) {
		return
	}
	dir := t.TempDir()
	testkit.Mount(t, "tmpfs", dir, "tmpfs", 0, "size=1m")
	r, m, _ := twoDisks(t)
	for _, format := range bothFormats {
		var warning string
		_, err := Run(context.Background(), r.repo, m, mustTargets(t, m, dir, format), Options{Progress: func(e Event) { warning += e.Warning }})
		if !errors.Is(err, unix.ENOSPC) {
			t.Error(err)
		}
		if !strings.Contains(warning, "bytes free") {
			t.Errorf("warning %q", warning)
		}
		empty(t, dir)
	}
}

// Cancelled at any step of progress, a restore leaves nothing, and is no success.
func TestCancel(t *testing.T) {
	t.Parallel()
	r, m, _ := twoDisks(t)
	for _, format := range bothFormats {
		dir := t.TempDir()
		for stop := 1; ; stop++ {
			ctx, cancel := context.WithCancelCause(context.Background())
			cause := errors.New("enough")
			events := 0
			_, err := Run(ctx, r.repo, m, mustTargets(t, m, dir, format), Options{Verify: true, Progress: func(e Event) {
				if events++; events == stop {
					cancel(cause)
				}
			}})
			cancelled := ctx.Err() != nil
			cancel(nil)
			if !cancelled {
				if err != nil || stop < 10 {
					t.Errorf("after %d events: %v", stop, err)
				}
				break
			}
			if !errors.Is(err, cause) && !errors.Is(err, context.Canceled) {
				t.Fatalf("cancelled at event %d: %v", stop, err)
			}
			empty(t, dir)
		}
	}
}

func TestCancelWhileLimited(t *testing.T) {
	t.Parallel()
	r, m, _ := twoDisks(t)
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// The first byte takes the burst; the rest would take hours.
	limit := rate.NewLimiter(rate.Limit(10), 10)
	go cancel()
	if _, err := Run(ctx, r.repo, m, mustTargets(t, m, dir, qcow2.Raw), Options{Limit: limit}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	empty(t, dir)
}

// When the second of two disks cannot be restored, the first does not appear.
func TestAllOrNothing(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	r := newTestRepo(t)
	rng := rand.New(rand.NewPCG(5, 5))
	a, b := newTestDisk("vda", 1<<20, rng), newTestDisk("vdb", 1<<20, rng)
	r.archive(t, a)
	before := r.objects(t, archive.PackPrefix)
	r.archive(t, b)
	a.write(0, 512, nil)
	m := r.archive(t, a, b)
	for _, key := range r.objects(t, archive.PackPrefix) {
		if key != before[0] {
			if err := r.store.Delete(ctx, key); err != nil {
				t.Fatal(err)
			}
		}
	}
	dir := t.TempDir()
	first := filepath.Join(dir, "vda.raw")
	if err := os.WriteFile(first, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	var seen []string
	_, err := Run(ctx, r.repo, m, mustTargets(t, m, dir, qcow2.Raw), Options{Force: true, Progress: func(e Event) {
		if e.Phase == Syncing {
			seen = append(seen, e.Disk)
		}
	}})
	var d *DamageError
	if !errors.As(err, &d) || d.Disk != "vdb" {
		t.Fatal(err)
	}
	if len(seen) != 1 || seen[0] != "vda" {
		t.Errorf("disks that were complete: %q", seen)
	}
	if got, err := os.ReadFile(first); err != nil || string(got) != "old" || len(testkit.Names(t, dir)) != 1 {
		t.Errorf("the target is now %d bytes (%v), the folder has %q", len(got), err, testkit.Names(t, dir))
	}
}

// Where a folder cannot be synced the disks are restored all the same, with one warning;
// a medium that fails is a failure, which leaves nothing.
func TestFolderThatCannotBeSynced(t *testing.T) {
	t.Parallel()
	r, m, disks := twoDisks(t)
	for _, answer := range []error{unix.EINVAL, unix.EIO} {
		dir := t.TempDir()
		out := filepath.Join(dir, "out")
		kernel := outfile.Linux()
		var calls atomic.Int64
		kernel.Folders.Call = func(*os.File) error { calls.Add(1); return answer }
		var warnings []string
		targets := mustTargets(t, m, out, qcow2.Raw)
		_, err := run(t.Context(), kernel, r.repo, m, targets, Options{MakeDir: out, Progress: func(e Event) {
			if e.Warning != "" {
				warnings = append(warnings, e.Warning)
			}
		}})
		if calls.Load() == 0 {
			t.Errorf("%v: no folder was synced", answer)
		}
		if answer == unix.EIO {
			if !errors.Is(err, answer) || len(warnings) != 0 {
				t.Errorf("%v, warnings %q", err, warnings)
			}
			empty(t, dir)
			continue
		}
		if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], dir) {
			t.Errorf("%v, warnings %q", err, warnings)
		}
		for i, tg := range targets {
			checkRestored(t, tg.Path, qcow2.Raw, disks[i].content)
		}
	}
}

// A file system without flock is no reason not to restore: it is a courtesy among runs
// of this program.
func TestNoFlock(t *testing.T) {
	t.Parallel()
	if !testkit.Refusing(t, unix.SYS_FLOCK, unix.ENOLCK) {
		return
	}
	r, m, disks := twoDisks(t)
	dir := t.TempDir()
	for range 2 { // once more over what is there
		for _, format := range bothFormats {
			targets := mustTargets(t, m, dir, format)
			if _, err := Run(t.Context(), r.repo, m, targets, Options{Force: true}); err != nil {
				t.Fatal(err)
			}
			for i, tg := range targets {
				checkRestored(t, tg.Path, format, disks[i].content)
			}
		}
	}
}
