// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

// A clone has what the file had, whatever is written to that later, and has no name.
func TestCloneFile(t *testing.T) {
	t.Parallel()
	folders, here := testkit.OnCloning(t)
	if !here {
		return
	}
	for _, at := range folders {
		for _, noCopy := range []bool{false, true} {
			dir := filepath.Join(at.Dir, map[bool]string{false: "plain", true: "nocow"}[noCopy])
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "file")
			file, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			if noCopy && at.Kind == "btrfs" {
				testkit.Tool(t, "chattr", "+C", path)
			}
			want := bytes.Repeat([]byte("what it has "), 20_001) // ends within a block
			if _, err := file.Write(want); err != nil {
				t.Fatal(err)
			}
			if err := TryClone(file, dir); err != nil {
				t.Errorf("%s: %v", dir, err)
			}
			clone, err := CloneFile(file, dir)
			if err != nil {
				t.Fatalf("%s: %v", dir, err)
			}
			if _, err := file.WriteAt([]byte("other"), 4096); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile("/proc/self/fd/" + itoa(clone))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: the clone has %d bytes, others than the file had (%v)", dir, len(got), err)
			}
			if st, err := Stat(clone); err != nil || st.Mode&0o7777 != 0o600 || st.Nlink != 0 {
				t.Errorf("%s: mode %o, %d names (%v)", dir, st.Mode, st.Nlink, err)
			}
			if names := testkit.Names(t, dir); len(names) != 1 {
				t.Errorf("%s: %q", dir, names)
			}
			if err := clone.Close(); err != nil {
				t.Error(err)
			}
			// The first folder that will do is taken.
			second, err := CloneFile(file, t.TempDir(), dir)
			if err != nil {
				t.Errorf("%s, beside one elsewhere: %v", dir, err)
			} else if err := second.Close(); err != nil {
				t.Error(err)
			}
			if err := file.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// Where files can't be cloned that is what is said, and nothing is left.
func TestCannotClone(t *testing.T) {
	t.Parallel()
	dir, other := "/dev/shm", t.TempDir() // a tmpfs, which clones nothing
	if kind, err := SystemKind(dir); err != nil || kind != unix.TMPFS_MAGIC {
		t.Fatalf("%s is no tmpfs (%v)", dir, err)
	}
	file, err := os.CreateTemp(dir, "imgbackup-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(file.Name())
	defer file.Close()
	for _, dirs := range [][]string{{dir}, {other}, {filepath.Join(other, "absent")}} {
		for name, err := range map[string]error{"try": TryClone(file, dirs...), "clone": second(CloneFile(file, dirs...))} {
			if err == nil || dirs[0] != filepath.Join(other, "absent") && !CannotClone(err) {
				t.Errorf("%s in %s: %v", name, dirs, err)
			}
		}
	}
	if out, err := exec.Command("find", dir, other, "-name", clonePrefix+"*").Output(); err != nil || len(out) > 0 {
		t.Errorf("left behind: %s (%v)", out, err)
	}
}

func second[T any](_ T, err error) error { return err }

func itoa(f *os.File) string {
	var name string
	_ = Control(f, func(fd int) error { name = strconv.Itoa(fd); return nil })
	return name
}
