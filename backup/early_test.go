// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/qemu"
)

// slowListing does something before the first listing of a domain.
type slowListing struct {
	objstore.Store
	once   sync.Once
	before func()
}

func (s *slowListing) List(ctx context.Context, prefix string) iter.Seq2[objstore.Info, error] {
	if strings.HasPrefix(prefix, "domains/") {
		s.once.Do(s.before)
	}
	return s.Store.List(ctx, prefix)
}

// While the repository tells what it has, an image is looked at, and nobody can write to it. One that
// does not answer keeps it for a while only; what is written then is in the backup.
func TestEarlyLook(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "1M")
	l.write("vda", "write -P 1 0 64k")
	l.backup("c1", l.disk("vda"))
	l.write("vda", "write -P 2 64k 64k")
	hit := false
	inner := l.repo.Store
	l.repo.Store = &slowListing{Store: inner, before: func() {
		hit = true
		for !flocked(t, l.path("vda")) {
			runtime.Gosched()
		}
		out, err := exec.CommandContext(t.Context(), "qemu-io", "-f", "qcow2", "-c", "write -P 3 128k 64k", l.path("vda")).CombinedOutput()
		if !strings.Contains(string(out), "lock") {
			t.Errorf("somebody can write to the image: %s, %v", out, err)
		}
		g, err := qemu.FlockImage(t.Context(), l.path("vda"), time.Minute)
		l.must(err)
		l.must(g.Close())
		l.write("vda", "write -P 4 192k 64k")
		l.remember("vm", "c2", l.disk("vda"))
	}}
	r, err := l.run(l.request("c2", l.disk("vda")), backup.Hooks{})
	l.must(err)
	if d := l.trusted(r, "c1"); !hit || d.DirtyBytes != 128<<10 {
		t.Errorf("%d bytes are dirty", d.DirtyBytes)
	}
	l.repo.Store = inner
	l.restoreAll()
}

// An image that another run is at work on is not looked at before its turn, in which that is told.
func TestEarlyLookBeside(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "1M")
	g, err := qemu.FlockImage(t.Context(), l.path("vda"), 0)
	l.must(err)
	var busy *qemu.BusyError
	if err := l.fails(l.request("c1", l.disk("vda")), backup.Hooks{}); !errors.As(err, &busy) {
		t.Errorf("got %v", err)
	}
	l.must(g.Close())
	l.expect(l.backup("c1", l.disk("vda")), "vda", backup.Full, backup.ByNothing, trust.ReasonFirst)
	l.must(os.Remove(l.path("vda")))
	if _, err := l.run(l.request("c2", l.disk("vda")), backup.Hooks{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// flocked reports whether anybody has a flock on a file.
func flocked(t *testing.T, path string) bool {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(locks)) {
		if strings.Contains(line, "FLOCK") && strings.Contains(line, fmt.Sprintf(":%d ", info.Sys().(*syscall.Stat_t).Ino)) {
			return true
		}
	}
	return false
}
