// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

// restricted, if it is in the environment, is a folder: the test binary restricts itself and
// tries what it can do.
const restricted = "CONFINE_TEST_RESTRICTED"

func TestMain(m *testing.M) {
	if dir := os.Getenv(restricted); dir != "" {
		if err := tryRestricted(dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if how := os.Getenv(kept); how != "" {
		if err := waitKept(how); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func tryRestricted(dir string) error {
	at := func(name string) string { return filepath.Join(dir, name) }
	open, err := os.Open(at("open/file"))
	if err != nil {
		return err
	}
	defer open.Close()
	if err := Restrict(Self{Read: []string{at("read")}, Write: []string{at("write")}, Clear: []string{at("clear")}, Run: []string{at("run/program")}}); err != nil {
		return err
	}
	read := func(path string) error { _, err := os.ReadFile(path); return err }
	write := func(path string) error { return os.WriteFile(path, []byte("new"), 0o600) }
	var wrong []error
	for what, c := range map[string]struct {
		err error
		ok  bool
	}{
		"read what it may":           {read(at("read/file")), true},
		"write what it may read":     {write(at("read/file")), false},
		"read what it may write":     {read(at("write/file")), true},
		"write what it may":          {write(at("write/new")), true},
		"move what it may write":     {os.Rename(at("write/new"), at("write/newer")), true},
		"read what is not named":     {read(at("other/file")), false},
		"read secrets of the system": {read("/etc/shadow"), false},
		"make a file elsewhere":      {write(at("other/new")), false},
		"read where it clears":       {read(at("clear/file")), false},
		"remove where it clears":     {os.Remove(at("clear/file")), true},
		"remove elsewhere":           {os.Remove(at("other/file")), false},
		"run a program":              {exec.Command("/bin/true").Run(), true},
		"run what it names":          {exec.Command(at("run/program")).Run(), true},
		"run what it has made":       {exec.Command(at("write/program")).Run(), false},
		"have a program read":        {exec.Command("/bin/cat", at("other/file")).Run(), false},
	} {
		if (c.err == nil) != c.ok || c.err != nil && !errors.Is(c.err, fs.ErrPermission) && !strings.Contains(c.err.Error(), "exit status") {
			wrong = append(wrong, fmt.Errorf("%s: %w", what, errors.Join(c.err)))
		}
	}
	if _, err := open.Read(make([]byte, 1)); err != nil {
		wrong = append(wrong, fmt.Errorf("what is open: %w", err))
	}
	return errors.Join(wrong...)
}

// TestRestrict: a process that has restricted itself, and what it starts, opens what it named
// and no more, on all of its threads.
func TestRestrict(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"read", "write", "open", "other", "clear", "run"} {
		if err := errors.Join(os.Mkdir(filepath.Join(dir, name), 0o700), os.WriteFile(filepath.Join(dir, name, "file"), []byte("text"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	program, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	for _, folder := range []string{"write", "run"} {
		testkit.Program(t, filepath.Join(dir, folder, "program"), string(program))
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), restricted+"="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
