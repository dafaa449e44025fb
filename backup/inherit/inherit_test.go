// SPDX-License-Identifier: Apache-2.0

package inherit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/inherit"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
	"github.com/imgbackup/imgbackup/view"
)

// left is a repository, and raw images of some points in time.
type left struct {
	*testing.T
	repo  *chain.Repository
	paths []string
}

func newLeft(t *testing.T) *left {
	t.Helper()
	repo, err := chain.Init(t.Context(), objstore.NewMem(), chain.InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	l := &left{T: t, repo: repo}
	for i := range 3 {
		path := filepath.Join(t.TempDir(), "vda.raw")
		made := time.Date(2026, 1, 1+i, 0, 0, 0, 0, time.UTC)
		if err := errors.Join(os.WriteFile(path, bytes.Repeat([]byte{byte(i + 1)}, 1<<20), 0o600), os.Chtimes(path, made, made)); err != nil {
			t.Fatal(err)
		}
		l.paths = append(l.paths, path)
	}
	return l
}

func (l *left) plan() *inherit.Plan {
	l.Helper()
	req := inherit.Request{Engine: backup.Request{Domain: "web"}}
	for _, path := range l.paths {
		req.Points = append(req.Points, inherit.Point{From: "a test", Disks: []backup.DiskRequest{{Disk: "vda", Path: path, Format: qcow2.Raw}}})
	}
	p, err := inherit.Make(l.Context(), l.repo, req)
	if err != nil {
		l.Fatal(err)
	}
	return p
}

// execute carries a plan out; at is called at each step of the point of that number.
func (l *left) execute(ctx context.Context, p *inherit.Plan, point int, at func(step string)) error {
	n := 0
	return p.Execute(ctx, l.repo, inherit.Told{
		Begin: func(*inherit.Step) backup.Hooks {
			n++
			if n-1 != point {
				return backup.Hooks{}
			}
			return backup.Hooks{Step: at}
		},
		End: func(*inherit.Step, *backup.Result, error) {},
	})
}

func (l *left) states(p *inherit.Plan) string {
	var all []string
	for _, s := range p.Steps {
		all = append(all, string(s.State))
	}
	return strings.Join(all, " ")
}

func (l *left) checkpoints() (all []*chain.Manifest) {
	l.Helper()
	all, damaged, err := l.repo.Manifests(l.Context(), "web")
	if err != nil || len(damaged) > 0 {
		l.Fatal(err, damaged)
	}
	return all
}

// Whenever a run is interrupted, what is there is sound, and the next run goes on and imports nothing twice.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	for _, step := range []string{backup.StepPlan, backup.StepIntent, backup.StepRead, backup.StepStored, backup.StepCommit, backup.StepCommitted} {
		l := newLeft(t)
		ctx, cancel := context.WithCancel(t.Context())
		hit := false
		err := l.execute(ctx, l.plan(), 1, func(at string) {
			if at == step {
				hit = true
				cancel()
			}
		})
		if !hit {
			t.Fatalf("%s was not reached", step)
		}
		got := len(l.checkpoints())
		if want := 1; step != backup.StepCommit && step != backup.StepCommitted && (got != want || err == nil) {
			t.Errorf("%s: %d checkpoints, %v", step, got, err)
		}
		p := l.plan()
		known := []string{"imported-before new new", "imported-before imported-before new"}[min(got, 2)-1]
		if s := l.states(p); s != known {
			t.Errorf("%s: %s with %d checkpoints", step, s, got)
		}
		if err := l.execute(t.Context(), p, -1, nil); err != nil {
			t.Errorf("%s: %v", step, err)
		}
		all := l.checkpoints()
		if len(all) != 3 {
			t.Fatalf("%s: %d checkpoints", step, len(all))
		}
		for i, m := range all {
			if m.Imported == nil || m.Imported.Files[0].Path != l.paths[i] || m.Created.Day() != 1+i || m.Disks[0].Bitmap != "" {
				t.Errorf("%s: checkpoint %d is %+v", step, i, m)
			}
		}
		if s := l.states(l.plan()); s != "imported-before imported-before imported-before" {
			t.Error(s)
		}
	}
}

// What changes while it is read is not imported.
func TestSourceChanges(t *testing.T) {
	t.Parallel()
	for what, change := range map[string]func(path string) error{
		"touched":  func(path string) error { return os.Chtimes(path, time.Time{}, time.Unix(1, 0)) },
		"cut":      func(path string) error { return os.Truncate(path, 4096) },
		"replaced": func(path string) error { return errors.Join(os.Remove(path), os.WriteFile(path, nil, 0o600)) },
	} {
		l := newLeft(t)
		err := l.execute(t.Context(), l.plan(), 1, func(at string) {
			if at == backup.StepRead {
				if err := change(l.paths[1]); err != nil {
					t.Error(err)
				}
			}
		})
		var inUse *qemu.InUseError
		if what != "cut" && !errors.As(err, &inUse) || err == nil || !strings.Contains(err.Error(), "what was imported before it stays") {
			t.Errorf("%s: %v", what, err)
		}
		if n := len(l.checkpoints()); n != 1 {
			t.Errorf("%s: %d checkpoints", what, n)
		}
	}
}

// An image of the VM that was backed up since keeps older points from coming after it, and no other domain's.
func TestOlder(t *testing.T) {
	t.Parallel()
	l := newLeft(t)
	if _, err := backup.Run(t.Context(), l.repo, backup.Request{Domain: "web", Disks: []backup.DiskRequest{{Disk: "vda", Path: l.paths[2], Format: qcow2.Raw}}}, backup.Hooks{}); err != nil {
		t.Fatal(err)
	}
	p := l.plan()
	var refused *inherit.RefusedError
	if err := l.execute(t.Context(), p, -1, nil); !errors.As(err, &refused) || len(refused.Points) != 3 || l.states(p) != "refused refused refused" {
		t.Errorf("%v, %s", err, l.states(p))
	}
	if n := len(l.checkpoints()); n != 1 {
		t.Errorf("%d checkpoints", n)
	}
}

// What has no time of its own is not known again by its name and size: it may have become another.
func TestTimeless(t *testing.T) {
	t.Parallel()
	l := newLeft(t)
	path := l.paths[0]
	for i, want := range []inherit.State{inherit.New, inherit.New, inherit.Known} {
		made := time.Date(2026, 2, 1+min(i, 1), 0, 0, 0, 0, time.UTC)
		content := bytes.Repeat([]byte{byte(0x10 + i)}, 1<<20)
		if err := errors.Join(os.WriteFile(path, content, 0o600), os.Chtimes(path, time.Unix(0, 0), time.Unix(0, 0))); err != nil {
			t.Fatal(err)
		}
		p, err := inherit.Make(t.Context(), l.repo, inherit.Request{
			Engine: backup.Request{Domain: "web"},
			Points: []inherit.Point{{Made: made, Time: chain.TimeGiven, From: "a test", Disks: []backup.DiskRequest{{Disk: "vda", Path: path, Format: qcow2.Raw}}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Steps[0].State; got != want {
			t.Errorf("run %d: %s, want %s", i, got, want)
		}
		if err := l.execute(t.Context(), p, -1, nil); err != nil {
			t.Error(err)
		}
	}
}

// What a backup makes of the VM meanwhile stays the newest; and who sees that one is about to make
// something makes nothing older after it.
func TestBackupMeanwhile(t *testing.T) {
	t.Parallel()
	made := newLeft(t)
	vm := backup.Request{Domain: "web", Checkpoint: "own", Disks: []backup.DiskRequest{{Disk: "vda", Path: newLeft(t).paths[2], Format: qcow2.Raw}}}
	err := made.execute(t.Context(), made.plan(), 1, func(step string) {
		if step == backup.StepRead {
			if _, err := backup.Run(t.Context(), made.repo, vm, backup.Hooks{}); err != nil {
				t.Error(err)
			}
		}
	})
	if err == nil || !strings.Contains(err.Error(), "own was made meanwhile") {
		t.Error(err)
	}
	if all := made.checkpoints(); len(all) != 2 || chain.Newest(all).Checkpoint != "own" {
		t.Errorf("%d checkpoints, the newest is %s", len(all), chain.Newest(all).Checkpoint)
	}

	making := newLeft(t)
	hold, err := making.repo.HoldFor(t.Context(), "a backup", "web", "own")
	if err != nil {
		t.Fatal(err)
	}
	var atWork *chain.AtWorkError
	if err := making.execute(t.Context(), making.plan(), -1, nil); !errors.As(err, &atWork) || len(making.checkpoints()) != 0 {
		t.Error(err)
	}
	if err := hold.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := making.execute(t.Context(), making.plan(), -1, nil); err != nil {
		t.Error(err)
	}
}

// A backup that has planned, or is at work, while points are imported comes after them, whenever they
// are committed: it is what was made last, and what everybody restores who names none.
func TestBackupAfterImports(t *testing.T) {
	t.Parallel()
	all := len(newLeft(t).paths)
	vm := func(l *left) backup.Request {
		return backup.Request{Domain: "web", Checkpoint: "own", Disks: []backup.DiskRequest{{Disk: "vda", Path: newLeft(l.T).paths[2], Format: qcow2.Raw}}}
	}
	check := func(l *left, want int) {
		t.Helper()
		ms := l.checkpoints()
		last := chain.Newest(ms)
		if len(ms) != want || last.Checkpoint != "own" {
			t.Errorf("%d checkpoints, the newest is %s", len(ms), last.Checkpoint)
		}
		for _, m := range ms {
			if m.UUID != last.UUID && m.Sequence >= last.Sequence {
				t.Errorf("%s has sequence %d, and own %d", m.Checkpoint, m.Sequence, last.Sequence)
			}
		}
	}

	planned := newLeft(t) // and so knows nothing of any of them
	var notes []string
	var once sync.Once
	_, err := backup.Run(t.Context(), planned.repo, vm(planned), backup.Hooks{
		Note: func(text string) { notes = append(notes, text) },
		Opened: func([]*qcow2.Image) (err error) {
			once.Do(func() { err = planned.execute(t.Context(), planned.plan(), -1, nil) })
			return err
		},
	})
	if err != nil || len(notes) != all || !strings.Contains(notes[0], "was made meanwhile") {
		t.Error(err, notes)
	}
	check(planned, all+1)

	// The import has seen that nobody else is at work, and its commit is on its way.
	committing := newLeft(t)
	plain := committing.repo
	store := objstoretest.NewFaulty(t, plain.Store, objstoretest.Fault{
		Op: objstoretest.Put, Prefix: chain.ManifestKey("web", "20260102T000000Z"), Times: 1, Lost: true,
		Hook: func(string) {
			if _, err := backup.Run(t.Context(), plain, vm(committing), backup.Hooks{}); err != nil {
				t.Error(err)
			}
		},
	})
	committing.repo = &chain.Repository{Store: store, Config: plain.Config}
	if err := committing.execute(t.Context(), committing.plan(), -1, nil); err == nil || !strings.Contains(err.Error(), "own was made meanwhile") {
		t.Error(err) // the next point finds out
	}
	check(committing, 3)
}

// Who is about to make a checkpoint under a name that was given up, where a void stands, is seen, too.
func TestBackupOverVoid(t *testing.T) {
	t.Parallel()
	l := newLeft(t)
	if _, err := l.repo.HoldFor(t.Context(), "a backup that ends", "web", "own"); err != nil {
		t.Fatal(err)
	}
	leases, _, err := l.repo.Leases(t.Context())
	if err != nil || len(leases) != 1 {
		t.Fatal(leases, err)
	}
	if err := l.repo.BreakLease(t.Context(), leases[0]); err != nil {
		t.Fatal(err)
	}
	hold, err := l.repo.HoldFor(t.Context(), "a backup", "web", "own")
	if err != nil {
		t.Fatal(err)
	}
	if leases, _, err = l.repo.Leases(t.Context()); err != nil || len(leases) != 1 || leases[0].Announces.SHA256 == nil {
		t.Fatal(leases, err)
	}
	var atWork *chain.AtWorkError
	if err := l.execute(t.Context(), l.plan(), -1, nil); !errors.As(err, &atWork) || len(l.checkpoints()) != 0 {
		t.Error(err)
	}
	if err := hold.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.execute(t.Context(), l.plan(), -1, nil); err != nil {
		t.Error(err)
	}
}

// overlays are a full qcow2 image, and increments over it that name nothing, with their points.
func (l *left) overlays(r *rand.Rand, n int) (points []inherit.Point, want []string) {
	l.Helper()
	const size = 8 << 20
	dir := l.TempDir()
	whole := filepath.Join(dir, "whole.raw") // what each is to read as: qemu's own word
	testkit.Tool(l, "qemu-img", "create", "-q", "-f", "raw", whole, strconv.Itoa(size))
	var over []qcow2.Named
	for i := range n {
		path := filepath.Join(dir, fmt.Sprintf("%d.qcow2", i))
		testkit.Tool(l, "qemu-img", "create", "-q", "-f", "qcow2", path, strconv.Itoa(size))
		for range 3 {
			at, length := r.IntN(size/512)*512, (1+r.IntN(1000))*512
			length = min(length, size-at)
			command := fmt.Sprintf("write -P %d %d %d", 1+i*3+r.IntN(3), at, length)
			if r.IntN(3) == 0 {
				at, length = at&^0xffff, 128<<10
				command = fmt.Sprintf("write -z %d %d", at, min(length, size-at))
			}
			testkit.Tool(l, "qemu-io", "-f", "raw", "-c", command, whole)
			// Of an increment that lies over nothing, qemu fills up what is around in a cluster with
			// zeros: it is made over what came before, as QEMU's own backups are, and then let go.
			if i > 0 {
				testkit.Tool(l, "qemu-img", "rebase", "-u", "-f", "qcow2", "-b", filepath.Join(dir, fmt.Sprintf("%d.qcow2", i-1)), "-F", "qcow2", path)
			}
			testkit.Tool(l, "qemu-io", "-f", "qcow2", "-c", command, path)
		}
		points = append(points, inherit.Point{
			Made: time.Date(2026, 1, 1+i, 0, 0, 0, 0, time.UTC), Time: chain.TimeGiven, From: "a test",
			Disks: []backup.DiskRequest{{Disk: "vda", Path: path, Format: qcow2.Qcow2, Over: slices.Clone(over)}},
		})
		over = append([]qcow2.Named{{Path: path, Format: qcow2.Qcow2}}, over...)
		copied := filepath.Join(dir, fmt.Sprintf("%d.raw", i))
		testkit.Tool(l, "cp", whole, copied)
		want = append(want, copied)
	}
	return points, want
}

// readAll reads the disk of a checkpoint.
func (l *left) readAll(m *chain.Manifest) []byte {
	l.Helper()
	c, err := view.Open(l.Context(), l.repo, m, nil, view.Options{NoAhead: true})
	if err != nil {
		l.Fatal(err)
	}
	defer c.Close()
	data := make([]byte, c.Disks[0].Size())
	if err := c.Disks[0].ReadAt(l.Context(), data, 0); err != nil {
		l.Fatal(err)
	}
	return data
}

// Of an increment over files that were read for the point before only what it holds is read, and each
// checkpoint is what qemu has of it all the same; where somebody has touched a file below meanwhile,
// whatever its time of modification says now, everything is read.
func TestOverlays(t *testing.T) {
	t.Parallel()
	for seed := range uint64(3) {
		l := newLeft(t)
		points, want := l.overlays(rand.New(rand.NewPCG(seed, 1)), 4)
		touched := seed == 2
		p, err := inherit.Make(t.Context(), l.repo, inherit.Request{Engine: backup.Request{Domain: "web"}, Points: points})
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		var read []int64
		err = p.Execute(t.Context(), l.repo, inherit.Told{
			Begin: func(*inherit.Step) backup.Hooks {
				n++
				if touched && n == 3 {
					l.touch(points[0].Disks[0].Path)
				}
				return backup.Hooks{Now: func() time.Time { return time.Now().Add(time.Hour) }}
			},
			End: func(_ *inherit.Step, r *backup.Result, err error) {
				if err == nil {
					read = append(read, r.Plan.Disks[0].ReadBytes)
				}
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		for i, m := range l.checkpoints() {
			data, err := os.ReadFile(want[i])
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(l.readAll(m), data) {
				t.Errorf("seed %d: checkpoint %d differs from what qemu has", seed, i)
			}
			if above := strings.Contains(m.Disks[0].Reason, "what lies over the files"); above != (i > 0 && (!touched || i != 2)) {
				t.Errorf("seed %d: checkpoint %d, of which %d bytes were read: %s", seed, i, read[i], m.Disks[0].Reason)
			}
		}
	}
}

// touch changes a file's times of modification, and back.
func (l *left) touch(path string) {
	l.Helper()
	info, err := os.Stat(path)
	if err == nil {
		err = errors.Join(os.Chtimes(path, time.Time{}, time.Unix(1, 0)), os.Chtimes(path, time.Time{}, info.ModTime()))
	}
	if err != nil {
		l.Fatal(err)
	}
}
