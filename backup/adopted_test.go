// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/checkpoint"
	"github.com/imgbackup/imgbackup/bitmapstore"
)

// Checkpoints of another program are adopted, while the guest writes, overlays are put on
// the image as libvirt does it, and backups of ours are made. What changed since one is
// told wholly, or refused; and refused only where somebody meddled with its bitmap, which is
// found out.
//
// IMGBACKUP_SOAK and IMGBACKUP_SEED draw more and other lives.
func TestAdoptedLives(t *testing.T) {
	t.Parallel()
	lives, seed := 4, uint64(1)
	if n, err := strconv.Atoi(os.Getenv("IMGBACKUP_SOAK")); err == nil {
		lives, seed = n, uint64(time.Now().UnixNano())
	}
	if n, err := strconv.ParseUint(os.Getenv("IMGBACKUP_SEED"), 10, 64); err == nil {
		seed = n
	}
	for i := range lives {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			a := &adoptedLife{lab: newLab(t), image: "image0", random: rand.New(rand.NewPCG(seed+uint64(i), 7))}
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("repeat with IMGBACKUP_SEED=%d IMGBACKUP_SOAK=1; what happened:\n%s", seed+uint64(i), strings.Join(a.log, "\n"))
				}
			})
			a.create(a.image, "4M")
			a.guest()
			for range 14 {
				a.event()
				a.check()
			}
			a.restoreAll()
		})
	}
}

// theirs is a checkpoint of the other program.
type theirs struct {
	name, parent string
	at           []byte // what the disk held
	gone         bool   // what its bitmap showed when it was adopted last, it no longer shows
	adopted      bool
}

type adoptedLife struct {
	*lab
	image  string // the active one, which overlays came before
	layers int
	random *rand.Rand
	points []*theirs
	count  int
	log    []string
}

func (a *adoptedLife) note(format string, args ...any) {
	a.log = append(a.log, fmt.Sprintf(format, args...))
}

func (a *adoptedLife) event() {
	a.count++
	switch a.random.IntN(9) {
	case 0, 1:
		a.guest()
	case 2, 3:
		p := &theirs{name: fmt.Sprintf("t%d", a.count), at: a.content()}
		if n := len(a.points); n > 0 {
			p.parent = a.points[n-1].name
		}
		a.note("their checkpoint %s", p.name)
		a.img("bitmap", "--add", "-f", "qcow2", a.path(a.image), p.name)
		a.points = append(a.points, p)
		a.guest()
	case 4, 5:
		a.adopt()
	case 6:
		a.note("our backup")
		a.backup(fmt.Sprintf("o%d", a.count), a.disk(a.image))
	case 7:
		a.overlay()
	case 8:
		a.meddle()
	}
}

// guest writes here and there.
func (a *adoptedLife) guest() {
	var commands []string
	for range 1 + a.random.IntN(3) {
		from, length := a.random.IntN(1000)*4, 4*(1+a.random.IntN(24))
		what := fmt.Sprintf("write -P %d %dk %dk", 1+a.random.IntN(250), from, length)
		if a.random.IntN(3) == 0 {
			what = fmt.Sprintf("discard %dk %dk", from, length)
		}
		commands = append(commands, what)
	}
	a.note("%s: %s", a.image, strings.Join(commands, "; "))
	a.write(a.image, commands...)
}

// overlay puts one on the image. libvirt begins the bitmaps anew in it before it writes; who
// does it by hand does not.
func (a *adoptedLife) overlay() {
	a.layers++
	next := fmt.Sprintf("image%d", a.layers)
	a.lab.overlay(next, a.image)
	propagated := a.random.IntN(2) == 0
	for _, p := range a.points {
		if propagated {
			a.img("bitmap", "--add", "-f", "qcow2", a.path(next), p.name)
		}
	}
	a.note("overlay %s, bitmaps begun anew: %v", next, propagated)
	if !propagated {
		// libvirt takes none of them any more, and begins with new ones.
		a.points = nil
	}
	a.image = next
}

// meddle clears an adopted bitmap that showed something then, or makes it anew.
func (a *adoptedLife) meddle() {
	for _, p := range a.points {
		if !p.adopted || p.gone || a.layers > 0 || !a.showed(p) {
			continue
		}
		p.gone = true
		if a.random.IntN(2) == 0 {
			a.note("%s is cleared", p.name)
			a.img("bitmap", "--clear", "-f", "qcow2", a.path(a.image), p.name)
		} else {
			a.note("%s is made anew", p.name)
			a.img("bitmap", "--remove", "--add", "-f", "qcow2", a.path(a.image), p.name)
		}
		return
	}
}

// showed reports whether the bitmap of a checkpoint showed anything when it was adopted.
func (a *adoptedLife) showed(p *theirs) bool {
	for _, w := range a.manifest(p.name).Disks[0].Witnesses {
		if w.Name == p.name && w.DirtyBytes > 0 {
			return true
		}
	}
	return false
}

// adopt puts all on record that the other program has. Where one was meddled with that
// program is told to begin anew.
func (a *adoptedLife) adopt() {
	a.note("adopted")
	for i, p := range a.points {
		_, err := checkpoint.Adopt(a.t.Context(), a.repo, a.request("", a.disk(a.image)), checkpoint.Definition{
			Name: p.name, Parent: p.parent, Created: time.Unix(1700000000+int64(i), 0), Bitmaps: map[string]string{"vda": p.name},
		}, backup.Hooks{})
		if p.gone {
			a.points = nil // it is adopted as another, or lacks what others show
			return
		}
		if err != nil {
			a.t.Fatalf("%s: %v", p.name, err)
		}
		p.adopted = true
	}
}

func (a *adoptedLife) content() []byte {
	a.t.Helper()
	raw := a.path("look.raw")
	a.img("convert", "-f", "qcow2", "-O", "raw", a.path(a.image), raw)
	data, err := os.ReadFile(raw)
	a.must(err)
	return data
}

// check asks what changed since every adopted checkpoint.
func (a *adoptedLife) check() {
	a.t.Helper()
	now := a.content()
	for _, p := range a.points {
		if !p.adopted {
			continue
		}
		var runs []bitmapstore.Run
		err := checkpoint.ChangesSince(a.t.Context(), a.repo, a.request("", a.disk(a.image)), p.name, backup.Hooks{}, func(all []checkpoint.Changes) (err error) {
			runs, err = all[0].Runs.Collect()
			return err
		})
		var refused *backup.NotTrustedError
		switch {
		case errors.As(err, &refused) && !p.gone:
			a.t.Fatalf("%s is refused: %v", p.name, err)
		case errors.As(err, &refused):
		case err != nil:
			a.t.Fatal(err)
		case p.gone:
			a.t.Fatalf("%s was meddled with, and is believed", p.name)
		default:
			a.covers("since "+p.name, runs, p.at, now)
		}
	}
}
