// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/check"
	"github.com/imgbackup/imgbackup/chain/transfer"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/internal/zero"
	"github.com/imgbackup/imgbackup/keys"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/restore"
	"github.com/imgbackup/imgbackup/view"
)

// TestMutants changes what objects of a real repository say, gives them the names that their
// bytes have then, all the way up, and seals and signs what names them: so no digest tells.
// Whatever was changed, nothing crashes, hangs or takes more than 256 MiB, and
//   - what is read of a disk, straight or by a restore, is what the changed tables say, as an
//     independent reader of docs/format.md takes them, or is refused;
//   - both refuse, or neither;
//   - where only packs were changed, it is what it always was, or refused;
//   - what a check with all data has no fault with, restores, and can be copied;
//   - a backup that finds its chunks in such a repository restores, or fails;
//   - what is read goes on to be after a repair, a prune or a forget of others, and a drill that passes has read all;
//   - a copy, into a plain repository, gives nothing else than that, or what it says to be damaged.
//
// It is alone in its process while it runs (no t.Parallel), since it counts memory. IMGBACKUP_SOAK=N
// tries N mutants, IMGBACKUP_SOAK_FROM begins at another one.
func TestMutants(t *testing.T) {
	plain, encrypted := newMutable(t, false), newMutable(t, true)
	seeds, from := 20, 0
	if n, err := strconv.Atoi(os.Getenv("IMGBACKUP_SOAK")); err == nil {
		seeds = n
	}
	if n, err := strconv.Atoi(os.Getenv("IMGBACKUP_SOAK_FROM")); err == nil {
		from = n
	}
	met := make(map[string]int)
	for _, m := range []*mutable{plain, encrypted} { // of which nothing is changed
		mu := m.unchanged(0)
		mu.onlyPacks = true
		m.judge(t, mu, met)
	}
	if met["clean"] != 2 || met["right"] != 18 || met["found"] != 2 {
		t.Fatal(met)
	}
	for what, change := range found() {
		t.Run(what, func(t *testing.T) {
			mu := encrypted.unchanged(0)
			change(mu)
			encrypted.judge(t, mu, met)
		})
	}
	for seed := from; seed < from+seeds; seed++ {
		of := plain
		if seed%2 == 1 {
			of = encrypted
		}
		t.Run(strconv.Itoa(seed), func(t *testing.T) { of.judge(t, of.mutant(t, uint64(seed)), met) })
	}
	t.Log(met)
	for what, least := range map[string]int{"clean": 3, "damaged": 10, "right": 60, "refused": 20} {
		if met[what] < least && seeds >= 20 && !t.Failed() {
			t.Errorf("only %d were %s: %v", met[what], what, met)
		}
	}
}

// found are changes of the encrypted repository that something was found by once.
func found() map[string]func(mu *mutant) {
	return map[string]func(mu *mutant){
		// The error of a copy was no damage.
		"maps of another size": func(mu *mutant) {
			for _, key := range mu.under(archive.MapPrefix) {
				text, _ := mu.text(key)
				mu.setText(key, strings.Replace(text, "size 2097152", "size 2097664", 1))
			}
		},
	}
}

// mutable is a repository of which mutants are made.
type mutable struct {
	objects map[string][]byte // as they are stored
	was     map[string][]byte // what each checkpoint's disk holds
	order   []string          // keys of what the checkpoints name, in an order that is the same each time
	ring    *keys.Keyring     // nil: it is plain
	dir     string            // where its admin's key is
}

// newMutable makes a repository by the program: incrementals by bitmap of a qcow2 image, a
// definition, and what a forget and a prune leave.
func newMutable(t *testing.T, encrypted bool) *mutable {
	dir := t.TempDir()
	r := &tampered{T: t, dir: dir, want: make(map[string][]byte), rand: rand.New(rand.NewPCG(20, 6))}
	image, definition, key := dir+"/vda.qcow2", dir+"/web.xml", ""
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "2M")
	if err := os.WriteFile(definition, []byte(strings.Replace(tamperedXML, "IMAGE", image, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if encrypted {
		key = "admin.key"
		r.do("", "init", "--encrypt", "--out", dir+"/admin.key")
	} else {
		r.do("", "init")
	}
	for i, name := range []string{"c1", "c2", "c3"} {
		var writes []string
		for j := range 5 {
			at := (j*7+i*5)%31*64 + 4*r.rand.IntN(8)
			writes = append(writes, fmt.Sprintf("write -P %d %dk %dk", 1+10*i+j, at, 4+4*r.rand.IntN(8)))
		}
		testkit.Guest(t, image, writes...)
		r.do(key, "backup", "--domain-xml", definition, "--checkpoint", name)
		r.want[name] = []byte(testkit.Tool(t, "sh", "-c", `qemu-img convert -f qcow2 -O raw "$0" "$0.raw" && cat "$0.raw"`, image))
	}
	m := &mutable{objects: (&fort{TB: t, dir: dir}).objects(), was: r.want, dir: dir}
	if encrypted {
		m.ring = (&fort{TB: t, dir: dir}).steal("admin").ring
	}
	for _, name := range []string{"c1", "c2", "c3"} {
		man, err := m.open(t, m.objects).Manifest(t.Context(), "web", name)
		if err != nil {
			t.Fatal(err)
		}
		needs, err := m.open(t, m.objects).Needs(t.Context(), man, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range needs {
			if !slices.Contains(m.order, o.Key) {
				m.order = append(m.order, o.Key)
			}
		}
	}
	return m
}

// open is a repository of these objects, in memory.
func (m *mutable) open(t *testing.T, objects map[string][]byte) *chain.Repository {
	t.Helper()
	return m.openIn(t, inMemory(t, objects))
}

// openIn is the one in a store.
func (m *mutable) openIn(t *testing.T, store objstore.Store) *chain.Repository {
	t.Helper()
	repo, err := chain.OpenWith(t.Context(), store, func(context.Context, objstore.Store, *chain.Config) (*chain.Access, error) {
		if m.ring == nil {
			return nil, nil
		}
		return accessOf(m.ring), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

// bounded does something that must come to an end, and not take much.
func bounded(t *testing.T, what string, do func(ctx context.Context) error) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err := do(ctx)
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > 256<<20 { // of which less was in use at a time
		t.Errorf("%s took %d MiB", what, took>>20)
	}
	if ctx.Err() != nil {
		t.Errorf("%s does not come to an end", what)
	}
	return err
}

// shown is how much of a disk is compared: a mutant may be of any size.
const shown = 3 << 20

func (m *mutable) judge(t *testing.T, mu *mutant, met map[string]int) {
	if t.Failed() {
		return
	}
	defer func() {
		if t.Failed() {
			t.Logf("mutant: %s", strings.Join(mu.did, "; "))
		}
	}()
	repo := m.open(t, mu.objects)
	var report *check.Report
	cerr := bounded(t, "check", func(ctx context.Context) (err error) {
		report, err = check.Run(ctx, repo, check.Options{ReadData: true})
		return err
	})
	clean := cerr == nil && report.Complete && len(report.Findings) == 0 && len(report.Lost) == 0
	if clean {
		met["clean"]++
	} else {
		met["damaged"]++
	}
	sound := make(map[diskNamedAs][]byte)
	defer func() { m.kept(t, mu, sound, met) }()
	m.goesOn(t, repo, met)
	copied, err := m.copied(t, repo)
	if clean && err != nil {
		t.Errorf("check has no fault, but a copy: %v", err)
	}
	for _, name := range []string{"c1", "c2", "c3"} {
		man, err := repo.Manifest(t.Context(), "web", name)
		if err != nil {
			told(t, name, err)
			if clean {
				t.Errorf("check has no fault, but of %s: %v", name, err)
			}
			met["refused"]++
			continue
		}
		for i := range man.Disks {
			d := &man.Disks[i]
			want := m.oracle(mu.objects, d)
			viewed, verr := readView(t, repo, man, d.Name)
			if verr == nil {
				sound[diskNamedAs{name, d.Name}] = viewed
			}
			restored, rerr := readRestored(t, repo, man, d.Name)
			again, aerr := readCopied(t, copied, name, d.Name)
			for how, got := range map[string]struct {
				data []byte
				err  error
			}{"a view": {viewed, verr}, "a restore": {restored, rerr}, "a copy": {again, aerr}} {
				switch {
				case errors.Is(got.err, errNotCopied):
				case got.err != nil:
					told(t, how, got.err)
					met["refused"]++
				case want.err != nil:
					t.Errorf("%s of %s/%s gives bytes, but %v", how, name, d.Name, want.err)
				case mu.onlyPacks && !bytes.Equal(got.data, m.was[name]):
					t.Errorf("%s of %s/%s gives other bytes by other packs alone", how, name, d.Name)
				case !bytes.Equal(got.data, want.data):
					t.Errorf("%s of %s/%s gives other bytes than the tables say", how, name, d.Name)
				default:
					met["right"]++
				}
			}
			if (verr == nil) != (rerr == nil) {
				t.Errorf("%s/%s: a view says %v, a restore %v", name, d.Name, verr, rerr)
			}
			if clean && want.audit != nil {
				t.Errorf("check has no fault with %s/%s, but %v", name, d.Name, want.audit)
			}
			if clean && (verr != nil || rerr != nil) && d.Size <= shown {
				t.Errorf("check has no fault, but %s/%s: %v; %v", name, d.Name, verr, rerr)
			}
		}
	}
}

// told demands that an error is about what is stored, and no failure of the program.
func told(t *testing.T, what string, err error) {
	t.Helper()
	if !archive.IsDamage(err) && !errors.As(err, new(*chain.LostError)) && !errors.As(err, new(*chain.NewerError)) {
		t.Errorf("%s: an error that is no damage: %v", what, err)
	}
}

// goesOn makes a backup of what c3 holds, of another domain, in which chunks are found by the indexes.
func (m *mutable) goesOn(t *testing.T, repo *chain.Repository, met map[string]int) {
	t.Helper()
	content := m.was["c3"]
	man := &chain.Manifest{
		Kind: chain.KindArchive, Domain: "other", Host: chain.Host{Name: "h"}, Checkpoint: "one", UUID: chain.NewUUID(),
		Sequence: 1, Created: time.Unix(1e9, 0).UTC(), Locking: chain.LockingQEMU, Requested: chain.ModeFull,
	}
	err := bounded(t, "a backup", func(ctx context.Context) error {
		own, err := repo.Indexing()
		if err != nil {
			return err
		}
		w, err := archive.NewWriter(ctx, repo.Store, archive.WriterOptions{Workers: 1, TempDir: t.TempDir(), Indexing: own})
		if err != nil {
			return err
		}
		defer w.Abort()
		disk := w.NewMap("vda", int64(len(content)), true)
		for at := int64(0); at < int64(len(content)); at += 64 << 10 {
			part := content[at : at+64<<10]
			if zero.Is(part) {
				continue
			}
			err := disk.Add(ctx, at, int64(len(part)), func(context.Context, []byte) ([]archive.Piece, error) {
				return []archive.Piece{{Offset: at, Length: int64(len(part)), Data: part}}, nil
			})
			if err != nil {
				return err
			}
		}
		refs, stats, err := w.Finish(ctx)
		if err != nil {
			return err
		}
		if stats.Reused > 0 {
			met["found"]++
		}
		man.Disks = []chain.Disk{{
			Name: "vda", Size: int64(len(content)), Source: chain.Source{Path: "/vm/a.raw", Format: "raw"}, Requested: chain.ModeFull,
			Mode: chain.ModeFull, Detection: chain.DetectionNone, NoBitmapReason: "raw", Maps: refs,
		}}
		return repo.Commit(ctx, man)
	})
	if err != nil {
		told(t, "a backup", err)
		return
	}
	if got, err := readView(t, repo, man, "vda"); err != nil || !bytes.Equal(got, content) {
		t.Errorf("a backup that found its chunks there reads wrongly: %v", err)
	}
}

// copied is a plain repository into which all was copied that can be.
func (m *mutable) copied(t *testing.T, repo *chain.Repository) (to *chain.Repository, err error) {
	t.Helper()
	if to, err = chain.Init(t.Context(), objstore.NewMem(), chain.InitOptions{}); err != nil {
		t.Fatal(err)
	}
	err = bounded(t, "a copy", func(ctx context.Context) error {
		_, err := transfer.Copy(ctx, repo, to, transfer.Options{TempDir: t.TempDir()})
		return err
	})
	if err != nil {
		told(t, "a copy", err)
	}
	return to, err
}

var errNotCopied = errors.New("it was not copied")

func readCopied(t *testing.T, to *chain.Repository, name, disk string) ([]byte, error) {
	t.Helper()
	man, err := to.Manifest(t.Context(), "web", name)
	if err != nil {
		return nil, errNotCopied
	}
	return readView(t, to, man, disk)
}

func readView(t *testing.T, repo *chain.Repository, man *chain.Manifest, disk string) (data []byte, err error) {
	t.Helper()
	err = bounded(t, "a view", func(ctx context.Context) error {
		c, err := view.Open(ctx, repo, man, []string{disk}, view.Options{})
		if err != nil {
			return err
		}
		defer c.Close()
		size := min(c.Disks[0].Size(), shown)
		data = make([]byte, size)
		for _, part := range rand.New(rand.NewPCG(1, 2)).Perm(4) { // in no order
			from, to := size*int64(part)/4, size*int64(part+1)/4
			if err := c.Disks[0].ReadAt(ctx, data[from:to], from); err != nil {
				return err
			}
		}
		return nil
	})
	return data, err
}

func readRestored(t *testing.T, repo *chain.Repository, man *chain.Manifest, disk string) (data []byte, err error) {
	t.Helper()
	path := t.TempDir() + "/restored.raw"
	err = bounded(t, "a restore", func(ctx context.Context) error {
		_, err := restore.Run(ctx, repo, man, []restore.Target{{Disk: disk, Path: path, Format: qcow2.Raw}}, restore.Options{})
		return err
	})
	if err != nil {
		if _, serr := os.Stat(path); serr == nil {
			t.Error("a restore that failed has left a file")
		}
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data = make([]byte, shown)
	n, _ := f.ReadAt(data, 0) // up to its end
	return slices.Clip(data[:n]), nil
}
