// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
)

// besideAdding is a store that answers for one object, from a step on, only when the first of two
// bitmaps stands, and after something else has happened.
type besideAdding struct {
	objstore.Store
	key    string
	from   string // a step of the writing order
	happen func(objstore.Store) error

	mu     sync.Mutex
	begun  bool
	adding int // bitmaps that qemu-img was asked for
	stands chan struct{}
	hit    bool
}

func (b *besideAdding) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	b.mu.Lock()
	now := key == b.key && b.begun && !b.hit
	b.hit = b.hit || now
	b.mu.Unlock()
	if now {
		select {
		case <-b.stands:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if err := b.happen(b.Store); err != nil {
			return nil, err
		}
	}
	return b.Store.Get(ctx, key, offset, length)
}

// step is a [backup.Hooks]'s. It reports whether the first bitmap stands for the first time.
func (b *besideAdding) step(step string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.begun = b.begun || step == b.from
	if step != backup.StepAdd {
		return false
	}
	b.adding++
	return b.adding == 2
}

// besideLab has the manifest of a checkpoint c2 that is not there.
type besideLab struct {
	*lab
	taker []byte
}

func (l *besideLab) makeTaker() {
	l.t.Helper()
	l.create("other", "1M")
	other := l.disk("other")
	other.Disk = "vdc"
	_, err := l.run(l.request("c2", other), backup.Hooks{})
	l.must(err)
	l.taker, err = objstore.ReadAll(l.t.Context(), l.repo.Store, chain.ManifestKey("vm", "c2"), 1<<20)
	l.must(errors.Join(err, l.repo.Store.Delete(l.t.Context(), chain.ManifestKey("vm", "c2"))))
}

// What is asked of the repository while bitmaps are added may turn out so that they are of no use: the
// checkpoint's name was taken by another run, or what the backup builds on is gone. Then they are taken
// out again, and it is said why; without its base the backup begins again.
func TestBitmapsAddedInVain(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, key, from string
		happen          func(l *besideLab, s objstore.Store) error
		verify          func(l *besideLab, err error, notes string)
	}{
		{"the name is taken", chain.ManifestKey("vm", "c2"), backup.StepPlan, func(l *besideLab, s objstore.Store) error {
			return s.Put(l.t.Context(), chain.ManifestKey("vm", "c2"), bytes.NewReader(l.taker), objstore.PutOptions{})
		}, func(l *besideLab, err error, _ string) {
			if !errors.As(err, new(*chain.TakenError)) || !strings.Contains(err.Error(), "c2") {
				l.t.Errorf("got %v", err)
			}
			for _, image := range []string{"vda", "vdb"} {
				l.holds(image, "c1")
			}
		}},
		{"its base is gone", chain.ManifestKey("vm", "c1"), backup.StepIntent, func(l *besideLab, s objstore.Store) error {
			return s.Delete(l.t.Context(), chain.ManifestKey("vm", "c1"))
		}, func(l *besideLab, err error, notes string) {
			l.must(err)
			if !strings.Contains(notes, "beginning again") || !strings.Contains(notes, "c1") {
				l.t.Errorf("nobody was told: %q", notes)
			}
			for _, image := range []string{"vda", "vdb"} {
				l.holds(image, "c1", "c2") // whose c1's is, nobody knows any more
			}
			l.taken = slices.DeleteFunc(l.taken, func(o oracle) bool { return o.checkpoint == "c1" })
			l.restoreAll()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := besideLab{newLab(t), nil}
			l.makeTaker()
			disks := []backup.DiskRequest{l.disk("vda"), l.disk("vdb")}
			disks[1].Disk = "vdb"
			for _, name := range []string{"vda", "vdb"} {
				l.create(name, "1M")
				l.write(name, "write -P 1 0 64k")
			}
			l.backup("c1", disks...)
			for _, name := range []string{"vda", "vdb"} {
				l.write(name, "write -P 2 64k 64k")
			}
			inner := l.repo.Store
			b := &besideAdding{Store: inner, key: tt.key, from: tt.from, stands: make(chan struct{})}
			b.happen = func(s objstore.Store) error { return tt.happen(&l, s) }
			l.repo.Store = b
			var notes []string
			for _, d := range disks {
				l.remember("vm", "c2", d)
			}
			_, err := l.run(l.request("c2", disks...), backup.Hooks{
				Note: func(msg string) { notes = append(notes, msg) },
				Step: func(step string) {
					if b.step(step) {
						if names := l.bitmapsOf("vda"); len(names) != 2 {
							t.Errorf("no bitmap has been added: %v", names)
						}
						close(b.stands)
					}
				},
			})
			l.repo.Store = inner
			if !b.hit {
				t.Fatal("nothing has happened while bitmaps were added")
			}
			tt.verify(&l, err, strings.Join(notes, "\n"))
			if n := l.intents("vm"); n != 0 {
				t.Errorf("%d intents are left", n)
			}
			for info, err := range inner.List(t.Context(), "leases/") {
				t.Errorf("a lease is left: %v, %v", info.Key, err)
			}
		})
	}
}

// An image that has gone when its bitmap is to be added is told of once, and nothing is sought in
// it that was never put there. Of one that has gone since, it is told what stays in it.
func TestGoneAsAdded(t *testing.T) {
	t.Parallel()
	for step, stays := range map[string]bool{backup.StepAdd: false, backup.StepAdded: true} {
		l := newLab(t)
		l.create("vda", "1M")
		l.write("vda", "write -P 1 0 64k")
		away := l.path("vda") + ".away"
		_, err := l.run(l.request("c1", l.disk("vda")), backup.Hooks{Step: func(at string) {
			if at == step {
				l.must(os.Rename(l.path("vda"), away))
			}
		}})
		l.must(os.Rename(away, l.path("vda")))
		if err == nil || strings.Count(err.Error(), "no such file") != 1 || stays != strings.Contains(err.Error(), "again for the same reason") {
			t.Errorf("%s: got %v", step, err)
		}
		if n := l.intents("vm"); (n == 1) != stays || len(l.bitmapsOf("vda")) != n {
			t.Errorf("%s: %d intents, bitmaps %v", step, n, l.bitmapsOf("vda"))
		}
		l.backup("c2", l.disk("vda"))
		l.holds("vda", "c2")
		if n := l.intents("vm"); n != 0 {
			t.Errorf("%s: %d intents are left", step, n)
		}
	}
}
