// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
)

// files are requests for the lab's file vars.fd as the firmware's variables, and
// for a definition.
func (l *lab) files() []backup.FileRequest {
	return []backup.FileRequest{
		{Role: chain.RoleNVRAM, Path: l.path("vars.fd")},
		{Role: chain.RoleDomainXML, Data: []byte("<domain/>")},
	}
}

func (l *lab) content(m *chain.Manifest, role string) string {
	l.t.Helper()
	f, ok := m.File(role)
	if !ok {
		l.t.Fatalf("no %s in %s", role, m.Checkpoint)
	}
	var out bytes.Buffer
	l.must(archive.CopyFile(l.t.Context(), l.repo.Store, f.FileRef, &out))
	return out.String()
}

func TestFilesAreArchived(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "1M")
	// No whole number of sectors.
	l.must(os.WriteFile(l.path("vars.fd"), []byte("variables"), 0o600))
	req := l.request("c1", l.disk("vda"))
	req.Files = l.files()
	m := l.backupAs(req).Manifest
	if l.content(m, chain.RoleNVRAM) != "variables" || l.content(m, chain.RoleDomainXML) != "<domain/>" {
		t.Error("other content")
	}
	if f, _ := m.File(chain.RoleNVRAM); f.Path != l.path("vars.fd") {
		t.Errorf("path %q", f.Path)
	}
}

// A file that somebody writes to, or has locked as QEMU does, is in use; and
// nothing stays behind.
func TestFilesInUse(t *testing.T) {
	t.Parallel()
	type attack struct {
		begin func(l *lab) (end func())
		step  string
		do    func(l *lab) error
	}
	lock := func(start int64) func(l *lab) func() {
		return func(l *lab) func() {
			f, err := os.OpenFile(l.path("vars.fd"), os.O_RDWR, 0)
			l.must(err)
			l.must(unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: start, Len: 1}))
			return func() { l.must(f.Close()) }
		}
	}
	for name, a := range map[string]attack{
		"locked for writing": {begin: lock(101)},
		"locked for itself":  {begin: lock(200)},
		"written to": {step: backup.StepRead, do: func(l *lab) error {
			return os.WriteFile(l.path("vars.fd"), []byte("VARIABLES"), 0o600)
		}},
		"exchanged": {step: backup.StepStored, do: func(l *lab) error {
			return errors.Join(os.WriteFile(l.path("new"), []byte("variables"), 0o600), os.Rename(l.path("new"), l.path("vars.fd")))
		}},
		"removed": {step: backup.StepStored, do: func(l *lab) error { return os.Remove(l.path("vars.fd")) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.create("vda", "1M")
			l.must(os.WriteFile(l.path("vars.fd"), []byte("variables"), 0o600))
			if a.begin != nil {
				defer a.begin(l)()
			}
			hit := a.step == ""
			hooks := backup.Hooks{Step: func(step string) {
				if step == a.step && !hit {
					hit = true
					l.must(a.do(l))
				}
			}}
			req := l.request("c1", l.disk("vda"))
			req.Files = l.files()
			if a.step != "" { // what a person has named is watched as well
				req.Files[0] = backup.FileRequest{Role: chain.RoleFile, Name: "x", Path: l.path("vars.fd")}
			}
			_, err := l.run(req, hooks)
			var inUse *qemu.InUseError
			if !hit || err == nil || name != "removed" && !errors.As(err, &inUse) {
				t.Fatalf("hit %v: %v", hit, err)
			}
			if _, err := l.repo.Manifest(t.Context(), "vm", "c1"); !errors.Is(err, chain.ErrNoCheckpoint) {
				t.Errorf("the checkpoint: %v", err)
			}
			l.holds("vda")
		})
	}
}

func TestFilesRefused(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("vda", "1M")
	l.must(os.WriteFile(l.path("large"), nil, 0o600))
	l.must(os.Truncate(l.path("large"), archive.MaxFile+1))
	l.must(unix.Mkfifo(l.path("fifo"), 0o600))
	var many []backup.FileRequest
	for i := range 257 {
		many = append(many, backup.FileRequest{Role: chain.RoleFile, Name: strconv.Itoa(i), Data: []byte("x")})
	}
	for name, files := range map[string][]backup.FileRequest{
		"twice":    {{Role: chain.RoleNVRAM, Path: "/a"}, {Role: chain.RoleNVRAM, Path: "/b"}},
		"no path":  {{Role: chain.RoleNVRAM}},
		"large":    {{Role: chain.RoleNVRAM, Path: l.path("large")}},
		"a pipe":   {{Role: chain.RoleLoader, Path: l.path("fifo")}},
		"a folder": {{Role: chain.RoleLoader, Path: l.images}},
		"no name":  {{Role: chain.RoleFile, Data: []byte("x")}},
		"a path":   {{Role: chain.RoleFile, Name: "a/b", Data: []byte("x")}},
		"one name": {{Role: chain.RoleFile, Name: "a", Data: []byte("x")}, {Role: chain.RoleFile, Name: "a", Data: []byte("y")}},
		"no size":  {{Role: chain.RoleFile, Name: "a", Path: "/proc/version"}},
		"many":     many,
	} {
		l.unchanged(func() {
			req := l.request("c1", l.disk("vda"))
			req.Files = files
			var wrong *usage.Error
			if _, err := l.run(req, backup.Hooks{}); !errors.As(err, &wrong) {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
}

// Where others may write a link is refused, for disks and for files; where it is the user's own it is followed.
func TestNoLink(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.img("create", "-q", "-f", "raw", "raw", "1M")
	l.must(os.WriteFile(l.path("vars.fd"), []byte("variables"), 0o600))
	for _, name := range []string{"raw", "vars.fd"} {
		l.must(os.Symlink(l.path(name), l.path("link-"+name)))
	}
	for _, c := range []struct {
		disk, file string
		noLink     bool
		good       bool
	}{
		{"raw", "vars.fd", true, true},
		{"link-raw", "vars.fd", true, false},
		{"raw", "link-vars.fd", true, false},
		{"link-raw", "link-vars.fd", false, true},
	} {
		req := l.request("c", backup.DiskRequest{Disk: "vda", Path: l.path(c.disk), Format: qcow2.Raw, NoLink: c.noLink})
		req.Files = []backup.FileRequest{{Role: chain.RoleNVRAM, Path: l.path(c.file), NoLink: c.noLink}}
		req.Checkpoint = c.disk + "-" + c.file
		_, err := l.run(req, backup.Hooks{})
		if (err == nil) != c.good || !c.good && !strings.Contains(err.Error(), "links are not followed there") {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
