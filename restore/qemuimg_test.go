// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/outfile"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
)

// wanted is a format with what qemu-img is to make of it.
type wanted struct {
	format qcow2.Format
	img    QemuImg
}

// everyFormat is one of each kind of writer, and all formats.
var everyFormat = map[string]wanted{
	"raw": {format: "raw"}, "qcow2": {format: "qcow2"},
	"vmdk": {format: "vmdk"}, "vhdx": {format: "vhdx"}, "vdi": {format: "vdi"}, "qed": {format: "qed"},
	"compressed qcow2":  {"qcow2", QemuImg{Compressed: true, Settings: []string{"cluster_size=4k"}}},
	"compressed vmdk":   {"vmdk", QemuImg{Compressed: true, Settings: []string{"subformat=streamOptimized"}}},
	"preallocated vhdx": {"vhdx", QemuImg{Settings: []string{"subformat=fixed", "block_size=1M"}}},
}

// checkImageIs asserts that an image is the model, as QEMU sees it.
func checkImageIs(t *testing.T, path string, format qcow2.Format, model []byte) {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	testkit.Tool(t, "qemu-img", "convert", "-f", string(format), "-O", "raw", path, raw)
	if got, err := os.ReadFile(raw); err != nil || !bytes.Equal(got, model) {
		t.Errorf("%s differs (%v)", path, err)
	}
}

// Every format holds what the checkpoint held, whatever the chain and the names.
func TestEveryFormat(t *testing.T) {
	t.Parallel()
	r := newTestRepo(t)
	rng := rand.New(rand.NewPCG(11, 11))
	disks := []*testDisk{newTestDisk("vda", 5<<20+512, rng), newTestDisk("vdb", 512, rng)}
	r.archive(t, disks...)
	disks[0].write(1<<20+512, 3<<20, nil)
	disks[0].write(4<<20, 4<<20+70<<10, rng)
	disks[0].resize(6 << 20)
	m := r.archive(t, disks...)
	for what, w := range everyFormat {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			// Names that options, protocols and shells would take for their own.
			names := []string{`nbd:a, b=c "d" $e`, "-vdb"}
			targets := []Target{{"vda", filepath.Join(dir, names[0]), w.format}, {"vdb", filepath.Join(dir, names[1]), w.format}}
			res, err := Run(t.Context(), r.repo, m, targets, Options{QemuImg: w.img, Verify: true, Workers: 2})
			if err != nil {
				t.Fatal(err)
			}
			if got := testkit.Names(t, dir); len(got) != 2 {
				t.Errorf("the folder has %q", got)
			}
			for i, d := range disks {
				got := res.Disks[i]
				if got.Size != d.size() || got.Data+got.Zero != d.size() || !got.Verified || got.Format != string(w.format) || got.Path != targets[i].Path {
					t.Errorf("result %+v", got)
				}
				short := filepath.Join(dir, d.name)
				if err := os.Rename(targets[i].Path, short); err != nil {
					t.Fatal(err)
				}
				if fi, err := os.Stat(short); err != nil || fi.Mode() != 0o600 {
					t.Errorf("mode %v (%v)", fi.Mode(), err)
				}
				checkImageIs(t, short, w.format, d.content)
			}
		})
	}
}

// A flipped bit in what qemu-img reads ends in a DamageError that names object and
// disk, with no output, and nowhere in wrong bytes.
func TestQemuImgDamage(t *testing.T) {
	t.Parallel()
	r := newTestRepo(t)
	rng := rand.New(rand.NewPCG(3, 3))
	disks := []*testDisk{newTestDisk("vda", 300<<10, rng), newTestDisk("vdb", 20<<10, rng)}
	r.archive(t, disks...)
	disks[1].write(1024, 9000, rng)
	m := r.archive(t, disks...)
	dir := t.TempDir()
	hits := 0
	for _, prefix := range []string{archive.MapPrefix, archive.PackPrefix} {
		for _, key := range r.objects(t, prefix) {
			data, err := objstore.ReadAll(t.Context(), r.store, key, 1<<30)
			if err != nil {
				t.Fatal(err)
			}
			for range 6 {
				bad := bytes.Clone(data)
				bad[rng.IntN(len(data))] ^= 1 << rng.IntN(8)
				r.replace(t, key, bad)
				targets := mustTargets(t, m, dir, "vdi")
				_, err := Run(t.Context(), r.repo, m, targets, Options{})
				if err == nil { // what is hit was not needed
					for i, tg := range targets {
						checkImageIs(t, tg.Path, "vdi", disks[i].content)
						_ = os.Remove(tg.Path)
					}
					continue
				}
				hits++
				var where *DamageError
				var what *archive.DamageError
				if !errors.As(err, &where) || !errors.As(err, &what) || what.Object != key || strings.Contains(err.Error(), "qemu-img") ||
					where.Disk != "vda" && where.Disk != "vdb" || where.Start < 0 || where.End <= where.Start || where.End > 300<<10 {
					t.Fatalf("%s: %v", key, err)
				}
				empty(t, dir)
			}
			r.replace(t, key, data)
		}
	}
	if hits < 10 {
		t.Errorf("only %d damages were met", hits)
	}
}

// replace puts another object in the place of one.
func (r *testRepo) replace(t *testing.T, key string, data []byte) {
	t.Helper()
	if err := r.store.Put(t.Context(), key, bytes.NewReader(data), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
		t.Fatal(err)
	}
}

// An outage is not damage, and is the error, not what qemu-img makes of it.
func TestQemuImgOutage(t *testing.T) {
	t.Parallel()
	for _, prefix := range []string{archive.MapPrefix, archive.PackPrefix} {
		r, m, _ := twoDisks(t)
		dir := t.TempDir()
		outage := errors.New("the network is down")
		faulty := &chain.Repository{Config: r.repo.Config, Store: objstoretest.NewFaulty(t, r.store,
			objstoretest.Fault{Op: objstoretest.Get, Prefix: r.objects(t, prefix)[0], Err: outage})}
		var at *chain.DiskError
		_, err := Run(t.Context(), faulty, m, mustTargets(t, m, dir, "vdi"), Options{})
		if !errors.Is(err, outage) || archive.IsDamage(err) || !errors.As(err, &at) || strings.Count(err.Error(), "disk vd") != 1 {
			t.Errorf("an outage at %s: %v", prefix, err)
		}
		empty(t, dir)
	}
}

// secondIsDamaged is a checkpoint of two disks of which only the second cannot be had.
func secondIsDamaged(t *testing.T) (*testRepo, *chain.Manifest) {
	t.Helper()
	r := newTestRepo(t)
	rng := rand.New(rand.NewPCG(5, 5))
	a, b := newTestDisk("vda", 1<<20, rng), newTestDisk("vdb", 1<<20, rng)
	r.archive(t, a)
	before := r.objects(t, archive.PackPrefix)
	r.archive(t, b)
	m := r.archive(t, a, b)
	for _, key := range r.objects(t, archive.PackPrefix) {
		if !slices.Contains(before, key) {
			if err := r.store.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
		}
	}
	return r, m
}

// When the second of two disks cannot be restored, the error is about that one, the
// first does not appear, and what stood there stays: in every format.
func TestEveryFormatIsAllOrNothing(t *testing.T) {
	t.Parallel()
	r, m := secondIsDamaged(t)
	for what, w := range everyFormat {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			parent := t.TempDir()
			dir := filepath.Join(parent, "new")
			targets := mustTargets(t, m, dir, w.format)
			var complete []string
			options := Options{QemuImg: w.img, Force: true, MakeDir: dir, Progress: func(e Event) {
				if e.Phase == Syncing {
					complete = append(complete, e.Disk)
				}
			}}
			for _, exists := range []bool{false, true} {
				complete = nil
				var d *DamageError
				_, err := Run(t.Context(), r.repo, m, targets, options)
				if !errors.As(err, &d) || d.Disk != "vdb" || !slices.Equal(complete, []string{"vda"}) {
					t.Fatalf("%v; complete are %q", err, complete)
				}
				if !exists {
					empty(t, parent)
					if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(targets[0].Path, []byte("old"), 0o600)); err != nil {
						t.Fatal(err)
					}
				}
			}
			if got, err := os.ReadFile(targets[0].Path); err != nil || string(got) != "old" || len(testkit.Names(t, dir)) != 1 {
				t.Errorf("%q (%v) in %q", got, err, testkit.Names(t, dir))
			}
		})
	}
}

// Progress begins at nothing, goes on, and ends with all of it, phase by phase: in
// every format.
func TestEveryFormatTellsProgress(t *testing.T) {
	t.Parallel()
	r, m, _ := twoDisks(t)
	for what, w := range everyFormat {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			var events []Event
			if _, err := Run(t.Context(), r.repo, m, mustTargets(t, m, t.TempDir(), w.format),
				Options{QemuImg: w.img, Verify: true, Progress: func(e Event) { events = append(events, e) }}); err != nil {
				t.Fatal(err)
			}
			var phases []string
			var last Event
			for _, e := range events {
				if e.Disk != last.Disk || e.Phase != last.Phase {
					phases = append(phases, e.Disk+" "+string(e.Phase))
				}
				if e.Done < last.Done || e.Done > e.Total || e.DiskDone > e.DiskTotal || e.Disk != last.Disk && e.DiskDone != 0 || last.Total != 0 && e.Total != last.Total {
					t.Errorf("%+v after %+v", e, last)
				}
				last = e
			}
			want := []string{"vda writing", "vda syncing", "vda verifying", "vdb writing", "vdb syncing", "vdb verifying"}
			if !slices.Equal(phases, want) || last.Done != last.Total || last.DiskDone != last.DiskTotal || last.Total == 0 {
				t.Errorf("%q, last %+v", phases, last)
			}
		})
	}
}

// Cancelled at any step of progress, qemu-img ends, nothing is left, and it is no
// success.
func TestQemuImgCancel(t *testing.T) {
	t.Parallel()
	r, m, _ := twoDisks(t)
	dir := t.TempDir()
	for stop := 1; ; stop++ {
		ctx, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("enough")
		events := 0
		_, err := Run(ctx, r.repo, m, mustTargets(t, m, dir, "vmdk"), Options{Verify: true, Progress: func(e Event) {
			if events++; events == stop {
				cancel(cause)
			}
		}})
		cancelled := ctx.Err() != nil
		cancel(nil)
		if !cancelled {
			if err != nil || stop < 8 {
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

// The limit holds for what qemu-img and stdout read, too: the first bytes take the
// burst, and the rest would take hours.
func TestEveryWriterIsLimited(t *testing.T) {
	t.Parallel()
	r, m, _ := twoDisks(t)
	dir := t.TempDir()
	for _, target := range []Target{{"vda", filepath.Join(dir, "x"), "raw"}, {"vda", filepath.Join(dir, "y"), "vdi"}, {"vda", Stdout, "raw"}} {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		done := int64(0)
		_, err := Run(ctx, r.repo, m, []Target{target}, Options{Stdout: &bytes.Buffer{}, Limit: rate.NewLimiter(rate.Limit(10), 10),
			Progress: func(e Event) { done = e.Done }})
		if err == nil || done != 0 {
			t.Errorf("%v: %v after %d bytes", target, err, done)
		}
		cancel()
		empty(t, dir)
	}
}

// A folder that was made is durable in its parent, and so are the names in it: in
// every format. A medium that fails at that is a failure, and nothing is left.
func TestEveryFormatSyncsFolders(t *testing.T) {
	t.Parallel()
	r, m, _ := twoDisks(t)
	for what, w := range everyFormat {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			for fail := 1; ; fail++ {
				parent := t.TempDir()
				dir := filepath.Join(parent, "new")
				var synced []string
				kernel := outfile.Linux()
				kernel.Folders = &sys.FolderSyncer{Call: func(f *os.File) error {
					if synced = append(synced, f.Name()); len(synced) == fail {
						return unix.EIO
					}
					return f.Sync()
				}}
				_, err := run(t.Context(), kernel, r.repo, m, mustTargets(t, m, dir, w.format), Options{QemuImg: w.img, MakeDir: dir})
				if len(synced) >= fail {
					if !errors.Is(err, unix.EIO) {
						t.Errorf("sync %d has failed: %v", fail, err)
					}
					empty(t, parent)
					continue
				}
				if err != nil || !slices.Contains(synced, parent) || !slices.Contains(synced, dir) || fail < 3 {
					t.Errorf("%v; synced were %q", err, synced)
				}
				return
			}
		})
	}
}

// Where renameat2 takes no flags, as on NFS, names are given all the same, and nothing
// that exists is lost: in every format.
func TestEveryFormatWithoutRenameFlags(t *testing.T) {
	t.Parallel()
	r, m, disks := twoDisks(t)
	for what, w := range everyFormat {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			kernel := outfile.Linux()
			plain, hits := kernel.Rename, 0
			kernel.Rename = func(dir *os.File, from, to string, flags uint) error {
				if flags != 0 {
					hits++
					return unix.EINVAL
				}
				return plain(dir, from, to, flags)
			}
			dir := t.TempDir()
			targets := mustTargets(t, m, dir, w.format)
			for _, force := range []bool{false, true} {
				if _, err := run(t.Context(), kernel, r.repo, m, targets, Options{QemuImg: w.img, Force: force}); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := run(t.Context(), kernel, r.repo, m, targets, Options{QemuImg: w.img}); !errors.Is(err, ErrTargetExists) {
				t.Errorf("what exists: %v", err)
			}
			if got := testkit.Names(t, dir); len(got) != 2 || hits != 4 {
				t.Errorf("%q, %d calls were refused", got, hits)
			}
			for i, d := range disks {
				checkImageIs(t, targets[i].Path, w.format, d.content)
			}
		})
	}
}

// A target in use is not replaced, and one on a file system without locks only with
// NoLock: in every format.
func TestEveryFormatLocks(t *testing.T) {
	t.Parallel()
	r, m, _ := twoDisks(t)
	for what, w := range everyFormat {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			targets := mustTargets(t, m, dir, w.format)
			testkit.Tool(t, "qemu-img", "create", "-q", "-f", "raw", targets[1].Path, "1M")
			held := testkit.StartNBD(t, "-f", "raw", targets[1].Path)
			options := Options{QemuImg: w.img, Force: true}
			var inUse *qemu.InUseError
			if _, err := Run(t.Context(), r.repo, m, targets, options); !errors.As(err, &inUse) || inUse.Path != targets[1].Path {
				t.Errorf("in use: %v", err)
			}
			held.End()
			kernel := outfile.Linux()
			kernel.LockImage = func(f *os.File) error { return &qemu.NoLockError{Path: f.Name(), Err: unix.ENOLCK} }
			var none *qemu.NoLockError
			if _, err := run(t.Context(), kernel, r.repo, m, targets, options); !errors.As(err, &none) || len(testkit.Names(t, dir)) != 1 {
				t.Errorf("no locks: %v", err)
			}
			options.NoLock = true
			if _, err := run(t.Context(), kernel, r.repo, m, targets, options); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestQemuImgCheck(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		wanted
		ok bool
	}{
		{wanted{"raw", QemuImg{}}, true},
		{wanted{"qcow2", QemuImg{}}, true},
		{wanted{"vdi", QemuImg{}}, true},
		{wanted{"vmdk", QemuImg{Compressed: true}}, true},
		{wanted{"qcow2", QemuImg{SecretFile: "x"}}, true},
		{wanted{"vmdk", QemuImg{Settings: []string{"subformat=monolithicSparse", "hwversion=6"}}}, true},
		{wanted{"", QemuImg{}}, false},
		{wanted{"vpc", QemuImg{}}, false},
		{wanted{"RAW", QemuImg{}}, false},
		{wanted{"raw", QemuImg{Compressed: true}}, false},
		{wanted{"raw", QemuImg{SecretFile: "x"}}, false},
		{wanted{"raw", QemuImg{Settings: []string{"a=b"}}}, false},
		{wanted{"vdi", QemuImg{Compressed: true}}, false},
		{wanted{"vmdk", QemuImg{SecretFile: "x"}}, false},
		{wanted{"qcow2", QemuImg{SecretFile: "x", Compressed: true}}, false},
		{wanted{"vmdk", QemuImg{Settings: []string{"subformat=twoGbMaxExtentSparse"}}}, false},
		{wanted{"qcow2", QemuImg{Settings: []string{"backing_file=x"}}}, false},
		{wanted{"qcow2", QemuImg{Settings: []string{"data_file=x"}}}, false},
		{wanted{"qcow2", QemuImg{Settings: []string{"encryption=on"}}}, false},
		{wanted{"qcow2", QemuImg{Settings: []string{"encrypt.format=luks"}}}, false},
		{wanted{"qcow2", QemuImg{Settings: []string{"size=1"}}}, false},
		{wanted{"qcow2", QemuImg{Settings: []string{"compat"}}}, false},
		{wanted{"qcow2", QemuImg{Settings: []string{"=x"}}}, false},
		{wanted{"qcow2", QemuImg{Settings: []string{"compat="}}}, false},
	} {
		if err := c.img.Check(c.format); (err == nil) != c.ok || err != nil && !errors.Is(err, usage.ErrWrong) {
			t.Errorf("%v: %v", c.wanted, err)
		}
	}
}
