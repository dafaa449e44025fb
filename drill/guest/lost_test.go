// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/drill"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/objstore"
)

// lost is a store that does something before packs are read.
type lost struct {
	objstore.Store
	before func(ctx context.Context) error
}

func (l *lost) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if strings.HasPrefix(key, "packs/") {
		if err := l.before(ctx); err != nil {
			return nil, err
		}
	}
	return l.Store.Get(ctx, key, offset, length)
}

var errAway = objstore.MarkPermanent(errors.New("the store is away"))

// cases is a guest with one file system and one file. At one of its commands it waits
// until it may go on; it reads the disk then, if it has it already, and when it is checked or
// mounted, each time elsewhere: what was read before is no more asked of the store.
const cases = `
  held) echo >"${0%%/*}/at"; read -r <"${0%%/*}/go" ;;
  look) qemu-io -r -f raw -c "read ${at:-0} 4096" "nbd+unix:///vda?socket=$sock" 2>&1 | grep -q 'read 4096/4096' || echo 'libguestfs: error: input/output error' >&2 ;;
  %[1]s) case "$1$sock" in version | *.sock | */nbd.0) answer held ;; esac
    case "$sock" in ?*) answer look ;; esac
    answer "only-$1" ;;
  only-version) printf 'major: 1\nminor: 50\nrelease: 2\nextra: \n' ;;
  add-drive) case "$*" in *unix:*) sock=$*; sock=${sock##*unix:}; sock=${sock%%%%\\x27*} ;; esac ;;
  list-partitions) echo /dev/sda1 ;;
  vfs-type | only-vfs-type) echo ext4 ;;
  fsck) at=4190208; answer look; at=; echo 0 ;;
  mount-ro) at=2097152; answer look; at= ;;
  only-fsck) echo 0 ;;
  statns) printf 'st_mode: 33188\nst_size: 1\nst_uid: 0\nst_gid: 0\nst_ino: 1\nst_nlink: 1\nst_blocks: 2\nst_mtime_sec: 1\nst_mtime_nsec: 0\nst_ctime_sec: 1\nst_ctime_nsec: 0\n' ;;
  checksum | only-checksum) echo ` + digits + ` ;;`

// held is a look into a guest that waits at a command.
type held struct {
	*Look
	dir     string
	reached atomic.Bool
	done    chan struct{}
}

// hold calls do when the command is reached; it goes on if do says so.
func hold(t *testing.T, command string, do func() bool) *held {
	t.Helper()
	h := &held{Look: &Look{Emulate: true}, done: make(chan struct{})}
	h.Program = testkit.Guestfish(t, fmt.Sprintf(cases, command))
	h.dir = filepath.Dir(h.Program)
	for _, name := range []string{"at", "go"} {
		path := filepath.Join(h.dir, name)
		if err := errors.Join(unix.Mkfifo(path, 0o600), os.Chmod(path, 0o666)); err != nil {
			t.Fatal(err)
		}
	}
	go func() {
		defer close(h.done)
		for {
			if b, err := os.ReadFile(filepath.Join(h.dir, "at")); err != nil || len(b) == 0 {
				return
			}
			h.reached.Store(true)
			if !do() {
				return
			}
			_ = os.WriteFile(filepath.Join(h.dir, "go"), []byte("\n"), 0)
		}
	}()
	return h
}

// verify makes sure that the command was reached, and no process is left.
func (h *held) verify(t *testing.T) {
	t.Helper()
	if f, err := os.OpenFile(filepath.Join(h.dir, "at"), os.O_WRONLY|unix.O_NONBLOCK, 0); err == nil {
		_ = f.Close() // who waits there has waited for nothing
	}
	<-h.done
	if !h.reached.Load() {
		t.Error("it did not come so far")
	}
	verifyNone(t, h.dir)
}

// verifyNone makes sure that no process has such a word on its command line.
func verifyNone(t *testing.T, word string) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		if b, err := os.ReadFile(path); err == nil && strings.Contains(string(b), word) {
			t.Errorf("still there: %q", b)
		}
	}
}

// points are commands at which something happens to a look into a guest, and the steps
// that are begun by then.
var points = []string{"version", "run", "vfs-type", "fsck", "mount-ro", "checksum"}

func looked(t *testing.T) *chaintest.History {
	h := chaintest.NewHistory(t)
	disk := guest("login: archived")
	copy(disk[2<<20:], "what is read to mount it")
	h.Commit(disk, true, nil)
	return h
}

func (h *held) target(t *testing.T, history *chaintest.History) *drill.Target {
	t.Helper()
	var err error
	if h.Expect, err = Parse([]string{"vda:/x=sha256:" + digits}, nil); err != nil {
		t.Fatal(err)
	}
	return &drill.Target{Manifest: history.Checkpoints[0], Steps: []drill.Step{h.Filesystems(), h.Files()}, History: history.Checkpoints, Whole: true}
}

// A store that goes away while a guest is looked into is neither a pass nor damage, and no
// fault of the guest's; with one that stays both steps pass.
func TestLookStoreAway(t *testing.T) {
	t.Parallel()
	for _, goes := range []bool{true, false} {
		for _, at := range points {
			t.Run(fmt.Sprint(at, goes), func(t *testing.T) {
				t.Parallel()
				history := looked(t)
				var away atomic.Bool
				history.Store.Store = &lost{history.Store.Store, func(context.Context) error {
					if away.Load() {
						return errAway
					}
					return nil
				}}
				h := hold(t, at, func() bool { away.Store(goes); return true })
				d := begin(t, history.Repo)
				target := h.target(t, history)
				target.Whole = false // else its first bytes are read before
				r, err := d.Run(t.Context(), target)
				h.verify(t)
				if err != nil || len(r.Steps) != 2 {
					t.Fatalf("%+v, %v", r.Steps, err)
				}
				for _, s := range r.Steps {
					if goes && (s.Status != record.Skipped || !strings.Contains(s.Reason, "the store is away") || s.WhatToDo == "") {
						t.Errorf("%+v", s)
					}
					if !goes && s.Status != record.Passed {
						t.Errorf("%+v", s)
					}
				}
				if !goes && r.Steps[0].Bytes < 4096 {
					t.Errorf("%d bytes were read", r.Steps[0].Bytes)
				}
			})
		}
	}
}

// An interrupt ends what looks into a guest, wherever it is.
func TestLookInterrupted(t *testing.T) {
	t.Parallel()
	for _, at := range points {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			history := looked(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			h := hold(t, at, func() bool { cancel(); return false })
			d := begin(t, history.Repo)
			r, err := d.Run(ctx, h.target(t, history))
			h.verify(t)
			verifyInterrupted(t, r, err)
		})
	}
}

func verifyInterrupted(t *testing.T, r *record.Record, err error) {
	t.Helper()
	if !errors.Is(err, context.Canceled) || r.Verdict != record.VerdictIncomplete {
		t.Fatalf("%+v, %v", r, err)
	}
	if s := r.Steps[len(r.Steps)-1]; s.Status != record.Skipped || s.Reason != "it was interrupted" {
		t.Errorf("%+v", s)
	}
}

// While a guest boots, a store that goes away, or an interrupt, at each of its reads.
func TestBootCutOff(t *testing.T) {
	t.Parallel()
	for _, interrupt := range []bool{true, false} {
		for n := range int64(2) {
			t.Run(fmt.Sprint(interrupt, n), func(t *testing.T) {
				t.Parallel()
				disk := guest("login: archived")
				copy(disk[1<<20:], "so that there is more than one chunk")
				history := chaintest.NewHistory(t)
				history.Commit(disk, true, nil)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				var reads atomic.Int64
				history.Store.Store = &lost{history.Store.Store, func(ctx context.Context) error {
					if reads.Add(1) <= n {
						return nil
					}
					if interrupt {
						cancel()
						<-ctx.Done() // as a store that hangs
						return context.Cause(ctx)
					}
					return errAway
				}}
				d := begin(t, history.Repo)
				b := pattern("login: arch")
				b.Timeout = time.Minute
				r, err := d.Run(ctx, &drill.Target{Manifest: history.Checkpoints[0], Steps: []drill.Step{b.Step()}, History: history.Checkpoints})
				if reads.Load() <= n {
					t.Fatalf("%d reads", reads.Load())
				}
				if interrupt {
					verifyInterrupted(t, r, err)
					return
				}
				if err != nil || r.Steps[0].Status != record.Skipped || !strings.Contains(r.Steps[0].Reason, "the store is away") {
					t.Errorf("%+v, %v", r.Steps, err)
				}
			})
		}
	}
}
