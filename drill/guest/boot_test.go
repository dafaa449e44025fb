// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/drill"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/machine"
)

// guest is a disk of 4 MiB whose boot sector writes to its second sector, reads its last
// one, and says what that begins with on the serial port.
func guest(word string) []byte {
	disk := make([]byte, 4<<20)
	copy(disk, []byte{
		0xfc, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, // cld; xor ax,ax; mov ds,ax; mov es,ax
		0xb8, 0x01, 0x03, 0xbb, 0x00, 0x7c, 0xb9, 0x02, 0x00, 0xba, 0x80, 0x00, 0xcd, 0x13, // int 13h: write sector 2
		0xb4, 0x42, 0xbe, 0x40, 0x7c, 0xb2, 0x80, 0xcd, 0x13, // int 13h, extended: read as 0x7c40 says
		0xbe, 0x00, 0x7e, 0xb9, 0x10, 0x00, 0xba, 0xf8, 0x03, // mov si,0x7e00; mov cx,16; mov dx,0x3f8
		0xac, 0xee, 0xe2, 0xfc, 0xf4, 0xeb, 0xfd, // lodsb; out dx,al; loop; hlt
	})
	copy(disk[0x40:], []byte{16, 0, 1, 0, 0x00, 0x7e, 0, 0, 0xff, 0x1f, 0, 0, 0, 0, 0, 0}) // sector 8191 to 0:7e00
	disk[510], disk[511] = 0x55, 0xaa
	copy(disk[len(disk)-512:], word)
	return disk
}

// begin begins a run whose folder must be empty at the end.
func begin(t *testing.T, repo *chain.Repository) *drill.Drill {
	t.Helper()
	dir := t.TempDir()
	d, err := drill.New(repo, drill.Options{Dir: dir, Tool: "test", Run: chain.NewUUID(), Note: func(string) {}, Told: func(string, int64) {}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%v is left, %v", left, err)
		}
	})
	return d
}

// run drills the newest checkpoint by one step.
func run(t *testing.T, h *chaintest.History, step drill.Step) *record.Step {
	t.Helper()
	d := begin(t, h.Repo)
	last := h.Checkpoints[len(h.Checkpoints)-1]
	r, err := d.Run(t.Context(), &drill.Target{Manifest: last, Steps: []drill.Step{step}, History: h.Checkpoints, Whole: true})
	if err != nil {
		t.Fatal(err)
	}
	return &r.Steps[0]
}

func pattern(text string) Boot {
	return Boot{Pattern: regexp.MustCompile(text), Timeout: 10 * time.Minute, Accel: machine.TCG}
}

// A guest reads what was archived, and what it writes changes nothing.
func TestBoot(t *testing.T) {
	t.Parallel()
	h := chaintest.NewHistory(t)
	h.Commit(guest("the first state"), true, nil)
	next := guest("login: archived")
	h.Commit(next, false, []chaintest.Change{{Start: int64(len(next)) - 512, End: int64(len(next))}})
	step := run(t, h, pattern("login: arch").Step())
	if step.Status != record.Passed || !strings.Contains(step.Reason, "login: arch") || step.Details["accelerator"] != machine.TCG || step.Bytes < 1024 {
		t.Errorf("%+v", step)
	}
	d := begin(t, h.Repo)
	look := look(func(ctx context.Context, s *drill.Subject) (drill.Result, error) {
		c, err := s.View(ctx)
		if err == nil {
			got := make([]byte, 1024)
			if err = c.Disks[0].ReadAt(ctx, got, 0); !slices.Equal(got, next[:1024]) {
				err = fmt.Errorf("the guest has changed the archive: %v", err)
			}
		}
		return drill.Pass(""), err
	})
	r, err := d.Run(t.Context(), &drill.Target{Manifest: h.Checkpoints[1], Steps: []drill.Step{look}, History: h.Checkpoints, Whole: true})
	if err != nil || r.Steps[0].Status != record.Passed {
		t.Errorf("%+v, %v", r.Steps, err)
	}
}

type look func(context.Context, *drill.Subject) (drill.Result, error)

func (look) Name() string                                                      { return record.StepCommand }
func (l look) Run(ctx context.Context, s *drill.Subject) (drill.Result, error) { return l(ctx, s) }

// A pack that is missing is told as that, whatever the guest makes of it.
func TestBootDamage(t *testing.T) {
	t.Parallel()
	h := chaintest.NewHistory(t)
	h.Commit(guest("login:"), true, nil)
	for info, err := range h.Store.List(t.Context(), "packs/") {
		if err == nil {
			err = h.Store.Delete(t.Context(), info.Key)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	b := pattern("login:")
	if step := run(t, h, b.Step()); step.Status != record.Failed || !strings.Contains(step.WhatToDo, "imgbackup repair") {
		t.Errorf("%+v", step)
	}
}

// Without QEMU, and without libguestfs, nothing is found out, and the package is told.
func TestProgramsMissing(t *testing.T) {
	h := chaintest.NewHistory(t)
	h.Commit(guest("login:"), true, nil)
	t.Setenv("PATH", t.TempDir())
	l := &Look{Expect: []Expectation{{Where: Where{Path: "/x"}, Within: time.Hour}}}
	for want, step := range map[string]drill.Step{
		"qemu-system-x86": pattern("login:").Step(), "libguestfs-tools": l.Filesystems(), "libguestfs-tools (": l.Files(),
	} {
		if got := run(t, h, step); got.Status != record.Skipped || !strings.Contains(got.WhatToDo, "install "+want) {
			t.Errorf("%+v, want %s", got, want)
		}
	}
}

// A guest that writes more than there is room for is stopped.
func TestRoom(t *testing.T) {
	t.Parallel()
	r := &room{dir: t.TempDir(), limit: 1 << 20}
	if err := os.WriteFile(filepath.Join(r.dir, "x"), make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for range lookAfter>>20 - 1 {
		if err := r.take(1 << 20); err != nil {
			t.Fatalf("not looked yet: %v", err)
		}
	}
	for range 3 {
		if err := r.take(1 << 20); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("too much is written, and that is %v", err)
		}
	}
}
