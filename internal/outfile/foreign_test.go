// SPDX-License-Identifier: Apache-2.0

package outfile

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

// foreignOutput is an output that another program has written to.
func foreignOutput(t *testing.T, kernel *System, path, content string, force bool) *Output {
	t.Helper()
	at, err := Resolve(kernel, Wanted{Path: path, Format: "vmdk", Force: force, Foreign: true})
	if err != nil {
		t.Fatal(err)
	}
	out, err := Open(t.Context(), kernel, at, Spec{Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if got := out.NowAt(); filepath.Base(got) != filepath.Base(path) || got == path {
		t.Errorf("it stands at %s", got)
	}
	if err := os.WriteFile(out.NowAt(), []byte(content), 0o666); err != nil {
		t.Fatal(err)
	}
	return out
}

// A file that another program has written is published as every other, with renameat2's
// flags or without, and leaves no folder.
func TestForeign(t *testing.T) {
	t.Parallel()
	for _, flags := range []bool{true, false} {
		kernel := Linux()
		plain, hits := kernel.Rename, 0
		kernel.Rename = func(dir *os.File, from, to string, how uint) error {
			if !flags && how != 0 {
				hits++
				return unix.EINVAL
			}
			return plain(dir, from, to, how)
		}
		dir := t.TempDir()
		old := filepath.Join(dir, "old")
		if err := os.WriteFile(old, []byte("was there"), 0o440); err != nil {
			t.Fatal(err)
		}
		outs := []*Output{foreignOutput(t, kernel, filepath.Join(dir, "new"), "a", false), foreignOutput(t, kernel, old, "b", true)}
		for _, o := range outs {
			if err := o.Finish(); err != nil {
				t.Fatal(err)
			}
		}
		if err := Publish(kernel, outs); err != nil {
			t.Fatal(err)
		}
		Settle(outs)
		for _, o := range outs {
			if err := o.Discard(); err != nil {
				t.Error(err)
			}
		}
		if got := contents(t, dir); got != "new=a old=b" || hits == 0 != flags {
			t.Errorf("flags %v, refused %d times: %s", flags, hits, got)
		}
		for name, want := range map[string]os.FileMode{"new": 0o600, "old": 0o440} {
			if fi, err := os.Stat(filepath.Join(dir, name)); err != nil || fi.Mode() != want {
				t.Errorf("%s: mode %v, %v", name, fi.Mode(), err)
			}
		}
	}
}

// What is not published, or taken back, leaves what was there and no folder.
func TestForeignIsTakenBack(t *testing.T) {
	t.Parallel()
	for what, fail := range map[string]func(t *testing.T, kernel *System, outs []*Output){
		"discarded": func(*testing.T, *System, []*Output) {},
		"not published": func(t *testing.T, kernel *System, outs []*Output) {
			plain, calls := kernel.Rename, 0
			kernel.Rename = func(dir *os.File, from, to string, flags uint) error {
				if calls++; calls == 2 {
					return unix.EIO
				}
				return plain(dir, from, to, flags)
			}
			if err := Publish(kernel, outs); !errors.Is(err, unix.EIO) {
				t.Error(err)
			}
		},
		"retracted": func(t *testing.T, kernel *System, outs []*Output) {
			if err := errors.Join(Publish(kernel, outs), Retract(kernel, outs)); err != nil {
				t.Error(err)
			}
		},
		"another file": func(t *testing.T, _ *System, outs []*Output) {
			if err := errors.Join(os.WriteFile(outs[0].NowAt()+".2", nil, 0o600), os.Rename(outs[0].NowAt()+".2", outs[0].NowAt())); err != nil {
				t.Fatal(err)
			}
			if err := outs[0].Finish(); err == nil {
				t.Error("no error")
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			kernel, dir := Linux(), t.TempDir()
			old := filepath.Join(dir, "old")
			if err := os.WriteFile(old, []byte("was there"), 0o600); err != nil {
				t.Fatal(err)
			}
			outs := []*Output{foreignOutput(t, kernel, filepath.Join(dir, "new"), "a", false), foreignOutput(t, kernel, old, "b", true)}
			fail(t, kernel, outs)
			for _, o := range outs {
				if err := o.Discard(); err != nil {
					t.Error(err)
				}
			}
			if got := contents(t, dir); got != "old=was there" {
				t.Error(got)
			}
		})
	}
}

func TestForeignIsNoDevice(t *testing.T) {
	t.Parallel()
	kernel := Linux()
	path := filepath.Join(t.TempDir(), "device")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	kernel.IsDevice = func(os.FileInfo) bool { return true }
	if _, err := Resolve(kernel, Wanted{Path: path, Format: "vmdk", Force: true, Foreign: true}); err == nil {
		t.Error("no error")
	}
	if got := testkit.Names(t, filepath.Dir(path)); len(got) != 1 {
		t.Errorf("%q", got)
	}
}
