// SPDX-License-Identifier: Apache-2.0

package prune

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/chain/check"
	"github.com/imgbackup/imgbackup/chain/repair"
	"github.com/imgbackup/imgbackup/chain/transfer"
	"github.com/imgbackup/imgbackup/internal/protocol"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/local"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
	"github.com/imgbackup/imgbackup/view"
)

// deed is something that is done to a repository.
type deed struct {
	do      func(ctx context.Context, w *world, repo *chain.Repository) error
	copies  bool  // the last checkpoint comes to be
	forgets []int // numbers of checkpoints
	tags    bool  // the checkpoint tagged
}

const (
	tagged  = 4 // the number of the checkpoint that gets a tag
	repacks = 3 // which of the deeds is a repack
	deeds   = 7
)

// life is what happens to a repository, one after the other.
func life() [deeds]deed {
	forget := func(numbers ...int) deed {
		return deed{forgets: numbers, do: func(ctx context.Context, w *world, repo *chain.Repository) error {
			all, _, err := repo.Manifests(ctx, "web")
			if err != nil {
				return err
			}
			var gone []*chain.Manifest
			for _, m := range all {
				if slices.ContainsFunc(numbers, func(n int) bool { return w.Checkpoints[n].Checkpoint == m.Checkpoint }) {
					gone = append(gone, m)
				}
			}
			return chain.Forget(ctx, repo, all, gone, func(*chain.Manifest) {})
		}}
	}
	small := Options{packSize: 64 << 10}
	pruned := deed{do: func(ctx context.Context, _ *world, repo *chain.Repository) error {
		_, err := Run(ctx, repo, small)
		return err
	}}
	return [deeds]deed{
		{copies: true, do: func(ctx context.Context, w *world, repo *chain.Repository) error {
			_, err := transfer.Copy(ctx, w.Repo, repo, transfer.Options{})
			return err
		}},
		{tags: true, do: func(ctx context.Context, w *world, repo *chain.Repository) error {
			_, err := repo.Retag(ctx, "web", w.Checkpoints[tagged].Checkpoint, []string{"monthly"}, nil)
			return err
		}},
		forget(0, 1, 3),
		repacks: pruned,
		forget(2),
		{do: func(ctx context.Context, _ *world, repo *chain.Repository) error {
			hold, err := repo.Hold(ctx, "backup")
			if err != nil {
				return err
			}
			r, err := Run(ctx, repo, small)
			if err == nil && len(r.Waiting) == 0 {
				err = errors.New("it does not wait for the backup")
			}
			return errors.Join(err, hold.Release(ctx))
		}},
		pruned, // goes on with the mark
	}
}

// onDisk copies a repository into a folder, and watches that.
func onDisk(t *testing.T, from objstore.Store, lies func(folder bool) bool) (*objstoretest.Disk, objstore.Store) {
	t.Helper()
	root := t.TempDir()
	for key := range objects(t, from) {
		data, err := objstore.ReadAll(t.Context(), from, key, 1<<30)
		at := filepath.Join(root, key)
		if err == nil {
			err = errors.Join(os.MkdirAll(filepath.Dir(at), 0o700), os.WriteFile(at, data, 0o600))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	disk := objstoretest.NewDisk(t, root)
	disk.Lies = lies
	store, err := local.Open(root, local.Options{Sync: disk.Sync})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() }) // nothing is written any more
	return disk, store
}

// restarted is the context of who comes after a power cut: nothing runs any more that did.
func restarted(ctx context.Context) context.Context {
	return protocol.WithTest(ctx, &protocol.Test{
		Ended: func(string) bool { return true },
		Pause: func(context.Context) error { return errors.New("nobody would ever end this wait") },
	})
}

// eachLeft calls do for what may be left after each cut: nothing that was not synced, all of
// it, and some parts.
func eachLeft(t *testing.T, disk *objstoretest.Disk, seed uint64, do func(step int, store objstore.Store) error) (lefts int, first error) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 5))
	some := func() bool { return r.IntN(2) == 0 }
	seen := make(map[string]bool)
	for n, c := range disk.Cuts() {
		for kind, keep := range []func() bool{func() bool { return false }, func() bool { return true }, some, some} {
			left, err := c.Left(r, keep)
			if err != nil {
				t.Fatal(err)
			}
			id := fmt.Sprint(c.Step, sum(left))
			if seen[id] {
				continue
			}
			seen[id] = true
			lefts++
			store := objstore.NewMem()
			for key, data := range left {
				if err := store.Put(t.Context(), key, bytes.NewReader(data), objstore.PutOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			if err := do(c.Step, store); err != nil && first == nil {
				first = fmt.Errorf("cut %d of %d, in step %d, kind %d: %w", n, len(disk.Cuts()), c.Step, kind, err)
			}
		}
		if first != nil {
			break
		}
	}
	return lefts, first
}

// sum tells sets of objects apart.
func sum(all map[string][]byte) [32]byte {
	h := sha256.New()
	for _, key := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(h, "%s %d %x\n", key, len(all[key]), sha256.Sum256(all[key]))
	}
	return [32]byte(h.Sum(nil))
}

// TestPowerCut: whatever is lost that was not synced, while checkpoints are copied, tagged and
// forgotten and their repository is repacked and pruned: each checkpoint reads as it was
// stored, unless it was forgotten; what was done before is done; and the next prune goes on.
// Were files, or folders, not synced while it is repacked, a checkpoint would be lost.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	for seed := range soak(1) {
		w := newSmallWorld(t, 3+seed, 6, 200<<10)
		begin := copyStore(t, w.Store)
		(&world{History: w.History, keys: w.keys, forgotten: make(map[string]bool)}).forget(t, w.open(t, begin), len(w.Checkpoints)-1)
		for _, lies := range []string{"", "files", "folders"} {
			at := 0
			disk, store := onDisk(t, begin, func(folder bool) bool {
				return at == repacks && lies == map[bool]string{false: "files", true: "folders"}[folder]
			})
			for _, d := range life() {
				if err := d.do(t.Context(), w, w.open(t, store)); err != nil {
					t.Fatal(err)
				}
				at++
				disk.Next()
			}
			lefts, err := eachLeft(t, disk, seed, func(step int, store objstore.Store) error {
				if lies != "" {
					return w.stands(t.Context(), store, step)
				}
				return w.goesOn(t.Context(), store, step)
			})
			t.Logf("not synced: %q, %d cuts, %d different: %v", lies, len(disk.Cuts()), lefts, err)
			switch {
			case lies == "" && err != nil:
				t.Errorf("seed %d: %v", seed, err)
			case lies == "" && lefts < 50:
				t.Errorf("only %d different states", lefts)
			case lies != "" && err == nil:
				t.Errorf("seed %d: no %s are synced, and nothing is lost", seed, lies)
			}
		}
	}
}

// goesOn returns what is wrong with what is left after some steps, or after the next prune.
func (w *world) goesOn(ctx context.Context, store objstore.Store, step int) error {
	if err := w.stands(ctx, store, step); err != nil {
		return err
	}
	ctx = restarted(ctx)
	repo, err := w.keys.Whole(ctx, store)
	if err != nil {
		return err
	}
	if _, err := Run(ctx, repo, Options{packSize: 64 << 10}); err != nil {
		return fmt.Errorf("prune: %w", err)
	}
	if err := w.stands(ctx, store, step); err != nil {
		return fmt.Errorf("after a prune: %w", err)
	}
	return clean(ctx, repo)
}

// stands returns what is wrong when the steps before step are done, and that one perhaps.
func (w *world) stands(ctx context.Context, store objstore.Store, step int) error {
	repo, err := w.keys.Whole(ctx, store)
	if err != nil {
		return err
	}
	forgotten, perhaps := make(map[int]bool), make(map[int]bool)
	isTagged := false
	last := len(w.Checkpoints) - 1
	for i, d := range life() {
		if i > step {
			break
		}
		if d.copies {
			perhaps[last] = i == step
		}
		for _, n := range d.forgets {
			forgotten[n], perhaps[n] = i < step, true
		}
		isTagged = isTagged || d.tags && i < step
	}
	for i, c := range w.Checkpoints {
		m, err := repo.Manifest(ctx, "web", c.Checkpoint)
		switch {
		case errors.Is(err, chain.ErrNoCheckpoint) && perhaps[i]:
			continue
		case err != nil:
			return err
		case forgotten[i]:
			return fmt.Errorf("checkpoint %s was forgotten, and stands", m.Checkpoint)
		case i == tagged && isTagged && len(m.Tags) == 0:
			return fmt.Errorf("checkpoint %s has lost its tag", m.Checkpoint)
		}
		got, err := read(ctx, repo, m)
		if err != nil {
			return fmt.Errorf("checkpoint %s: %w", m.Checkpoint, err)
		}
		if !bytes.Equal(got, w.Want[i]) {
			return fmt.Errorf("checkpoint %s reads otherwise", m.Checkpoint)
		}
	}
	return nil
}

// TestPowerCutInRepair: whatever is lost that was not synced while a repository is repaired,
// from another or of what is left: what could be read before reads as it did, and the next
// repair does the rest. Were nothing synced, what was repaired would not be.
func TestPowerCutInRepair(t *testing.T) {
	t.Parallel()
	for seed := range soak(1) {
		for _, lies := range []bool{false, true} {
			w := newSmallWorld(t, seed, 4, 300<<10)
			twin := repair.Options{From: []repair.Source{{Name: "twin", Repo: w.open(t, copyStore(t, w.Store))}}}
			r := rand.New(rand.NewPCG(seed, 7))
			isData := func(key string) bool { return chain.ParseKey(key).Kind == chain.KeyData }
			for range 4 {
				chaintest.Harm(t, w.Store, r, isData, isData)
			}
			readable := func(ctx context.Context, repo *chain.Repository, i int) error {
				m, err := repo.Manifest(ctx, "web", w.Checkpoints[i].Checkpoint)
				if err != nil {
					return err
				}
				got, err := read(ctx, repo, m)
				if err == nil && !bytes.Equal(got, w.Want[i]) {
					err = errors.New("it reads otherwise")
				}
				return err
			}
			before := make([]bool, len(w.Checkpoints))
			for i := range before {
				before[i] = readable(t.Context(), w.Repo, i) == nil
			}
			for _, o := range []repair.Options{twin, {}} {
				if lies && len(o.From) == 0 {
					continue // nothing was to be had again
				}
				disk, store := onDisk(t, w.Store, func(bool) bool { return lies })
				if err := mend(t.Context(), w.open(t, store), o); err != nil {
					t.Fatal(err)
				}
				disk.Next()
				lefts, err := eachLeft(t, disk, seed, func(step int, store objstore.Store) error {
					ctx := restarted(t.Context())
					repo, err := w.keys.Whole(ctx, store)
					if err != nil {
						return err
					}
					for i := range before {
						if err := readable(ctx, repo, i); err != nil && before[i] {
							return fmt.Errorf("checkpoint %d could be read: %w", i, err)
						}
					}
					for i := range before {
						if err := readable(ctx, repo, i); err != nil && step > 0 && len(o.From) > 0 {
							return fmt.Errorf("checkpoint %d was repaired: %w", i, err)
						}
					}
					if err := mend(ctx, repo, o); err != nil {
						return fmt.Errorf("repair: %w", err)
					}
					if err := mend(ctx, repo, twin); err != nil {
						return fmt.Errorf("repair from the twin: %w", err)
					}
					for i := range before {
						if err := readable(ctx, repo, i); err != nil {
							return fmt.Errorf("checkpoint %d after the repair: %w", i, err)
						}
					}
					return nil
				})
				t.Log(seed, lies, len(o.From), len(disk.Cuts()), "cuts,", lefts, "different:", err)
				switch {
				case lies && err == nil:
					t.Errorf("seed %d: nothing is synced, and nothing is lost", seed)
				case !lies && err != nil:
					t.Errorf("seed %d: %v", seed, err)
				}
			}
		}
	}
}

// mend repairs a repository.
func mend(ctx context.Context, repo *chain.Repository, o repair.Options) error {
	p, err := repair.Make(ctx, repo, o)
	if err == nil {
		_, err = p.Execute(ctx)
	}
	return err
}

// clean returns what a check finds.
func clean(ctx context.Context, repo *chain.Repository) error {
	report, err := check.Run(ctx, repo, check.Options{ReadData: true, Workers: 2})
	if err == nil && len(report.Findings) > 0 {
		err = fmt.Errorf("a check finds %+v", report.Findings)
	}
	return err
}

// read reads the disk of a checkpoint.
func read(ctx context.Context, repo *chain.Repository, m *chain.Manifest) ([]byte, error) {
	reader := view.NewReader(ctx, repo, view.Options{NoAhead: true})
	defer reader.Close()
	d, err := reader.Open(ctx, &m.Disks[0])
	if err != nil {
		return nil, err
	}
	got := make([]byte, d.Size())
	return got, d.ReadAt(ctx, got, 0)
}
