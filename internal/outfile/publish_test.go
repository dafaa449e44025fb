// SPDX-License-Identifier: Apache-2.0

package outfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

// contents returns what stands under names that are not partial.
func contents(t *testing.T, dir string) string {
	t.Helper()
	var list []string
	for _, name := range testkit.Names(t, dir) {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if isPartialName(name) {
			name = "PARTIAL"
		}
		list = append(list, name+"="+string(data))
	}
	return strings.Join(list, " ")
}

// testNamings makes partial files new0, new1, … for a, b, …; those in old
// replace a file.
func testNamings(t *testing.T, d *folder, n int, old ...int) []*naming {
	t.Helper()
	var files []*naming
	for i := range n {
		f := &naming{p: testPartial(t, d, "x", fmt.Sprint("new", i)), final: string(rune('a' + i))}
		for _, o := range old {
			if o == i {
				if err := os.WriteFile(f.path(), []byte(fmt.Sprint("old", i)), 0o600); err != nil {
					t.Fatal(err)
				}
				existing, err := os.Open(f.path())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = existing.Close() })
				f.replaces = existing
			}
		}
		files = append(files, f)
	}
	return files
}

func TestPublish(t *testing.T) {
	t.Parallel()
	d := testFolder(t)
	files := testNamings(t, d, 3, 1)
	if err := publish(Linux(), files); err != nil {
		t.Fatal(err)
	}
	if got := contents(t, d.path); got != "PARTIAL=old1 a=new0 b=new1 c=new2" {
		t.Error(got)
	}
	for _, f := range files {
		f.settle()
	}
	if got := contents(t, d.path); got != "a=new0 b=new1 c=new2" {
		t.Error(got)
	}
}

// What was published can be taken back until it is settled.
func TestRetract(t *testing.T) {
	t.Parallel()
	d := testFolder(t)
	files := testNamings(t, d, 3, 1)
	if err := publish(Linux(), files); err != nil {
		t.Fatal(err)
	}
	if err := retract(Linux(), files); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		f.settle()
		if err := f.p.remove(); err != nil {
			t.Error(err)
		}
	}
	if got := contents(t, d.path); got != "b=old1" {
		t.Error(got)
	}
}

// A name that cannot be taken back is said, and its file stays.
func TestRetractFails(t *testing.T) {
	t.Parallel()
	sys := Linux()
	d := testFolder(t)
	files := testNamings(t, d, 3, 1)
	if err := publish(sys, files); err != nil {
		t.Fatal(err)
	}
	rename := sys.Rename
	sys.Rename = func(dir *os.File, from, to string, flags uint) error {
		if from == "b" {
			return unix.EIO
		}
		return rename(dir, from, to, flags)
	}
	if err := retract(sys, files); !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), files[1].path()) {
		t.Error(err)
	}
	for _, f := range files {
		f.settle()
		if err := f.p.remove(); err != nil {
			t.Error(err)
		}
	}
	if got := contents(t, d.path); got != "b=new1" {
		t.Error(got)
	}
}

// Where the file system has neither of renameat2's flags, names are given by
// link and plain rename.
func TestPublishWithoutRenameFlags(t *testing.T) {
	t.Parallel()
	sys := Linux()
	plain, hits := sys.Rename, 0
	sys.Rename = func(dir *os.File, from, to string, flags uint) error {
		if flags != 0 {
			hits++
			return unix.EINVAL
		}
		return plain(dir, from, to, flags)
	}
	d := testFolder(t)
	files := testNamings(t, d, 2, 1)
	if err := publish(sys, files); err != nil {
		t.Fatal(err)
	}
	for _, n := range files {
		n.settle()
	}
	if got := contents(t, d.path); got != "a=new0 b=new1" || hits != 2 {
		t.Error(got, hits)
	}
	if err := os.WriteFile(filepath.Join(d.path, "taken"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n := &naming{p: testPartial(t, d, "x", "new"), final: "taken"}
	if err := publish(sys, []*naming{n}); !errors.Is(err, ErrExists) {
		t.Errorf("a taken name: %v", err)
	}
}

func TestPublishIsAllOrNothing(t *testing.T) {
	t.Parallel()
	for fail := range 3 {
		t.Run(fmt.Sprint(fail), func(t *testing.T) {
			t.Parallel()
			sys := Linux()
			rename, calls := sys.Rename, 0
			sys.Rename = func(dir *os.File, from, to string, flags uint) error {
				calls++
				if calls == fail+1 {
					return unix.EIO
				}
				return rename(dir, from, to, flags)
			}
			d := testFolder(t)
			files := testNamings(t, d, 3, 1)
			if err := publish(sys, files); !errors.Is(err, unix.EIO) {
				t.Fatal(err)
			}
			if got := contents(t, d.path); strings.Count(got, "PARTIAL=new") != 3 || !strings.HasSuffix(got, " b=old1") {
				t.Error(got)
			}
			for _, f := range files {
				if err := f.p.remove(); err != nil {
					t.Error(err)
				}
			}
			if got := contents(t, d.path); got != "b=old1" {
				t.Error(got)
			}
		})
	}
}

// Whatever calls a file system has: at every moment each of the files that are replaced
// is there, old or new and whole, and whichever call fails, all are as they were.
func TestReplacedFilesAreAlwaysThere(t *testing.T) {
	t.Parallel()
	for _, exchanges := range []bool{true, false} {
		for fail := range 4 { // 3: none
			kernel := Linux()
			d := testFolder(t)
			files := testNamings(t, d, 3, 0, 1, 2)
			look := func() {
				for i, n := range files {
					got, err := os.ReadFile(n.path())
					if text := string(got); err != nil || text != fmt.Sprint("old", i) && text != fmt.Sprint("new", i) {
						t.Errorf("%v, %d: %s is %q: %v", exchanges, fail, n.final, got, err)
					}
				}
			}
			rename, calls := kernel.Rename, 0
			kernel.Rename = func(dir *os.File, from, to string, flags uint) error {
				look()
				if flags != 0 && !exchanges {
					return unix.EINVAL
				}
				if calls++; calls == fail+1 {
					return unix.EIO
				}
				err := rename(dir, from, to, flags)
				look()
				return err
			}
			err := publish(kernel, files)
			want := "a=new0 b=new1 c=new2"
			if fail < len(files) {
				want = "a=old0 b=old1 c=old2"
			}
			if (err != nil) != (fail < len(files)) {
				t.Errorf("%v, %d: %v", exchanges, fail, err)
			}
			for _, n := range files {
				n.settle()
				if err := n.p.remove(); err != nil {
					t.Error(err)
				}
			}
			if got := contents(t, d.path); got != want {
				t.Errorf("%v, %d: %s", exchanges, fail, got)
			}
		}
	}
}

func TestPublishNeverOverwritesWhatAppeared(t *testing.T) {
	t.Parallel()
	d := testFolder(t)
	files := testNamings(t, d, 2)
	if err := os.WriteFile(filepath.Join(d.path, "b"), []byte("theirs"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := publish(Linux(), files); !errors.Is(err, ErrExists) {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := f.p.remove(); err != nil {
			t.Error(err)
		}
	}
	if got := contents(t, d.path); got != "b=theirs" {
		t.Error(got)
	}
}

// What is replaced must be the file that was locked, not one put there since.
func TestPublishNeverReplacesAnotherFile(t *testing.T) {
	t.Parallel()
	d := testFolder(t)
	files := testNamings(t, d, 2, 1)
	if err := os.Remove(files[1].path()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(files[1].path(), []byte("theirs"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := publish(Linux(), files); err == nil {
		t.Fatal("no error")
	}
	for _, f := range files {
		if err := f.p.remove(); err != nil {
			t.Error(err)
		}
	}
	if got := contents(t, d.path); got != "b=theirs" {
		t.Error(got)
	}
}

// Where a folder cannot be synced the files get their names all the same, and that
// is told once; a medium that fails takes them back.
func TestPublishInAFolderThatCannotBeSynced(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		answer error
		want   string
	}{
		{unix.EINVAL, "a=new0 b=new1"},
		{unix.EIO, "PARTIAL=new0 PARTIAL=new1"},
	} {
		kernel := Linux()
		var notes []string
		calls := 0
		kernel.Folders.Note = func(msg string) { notes = append(notes, msg) }
		kernel.Folders.Call = func(*os.File) error { calls++; return c.answer }
		d := testFolder(t)
		err := publish(kernel, testNamings(t, d, 2))
		got := strings.Fields(contents(t, d.path))
		slices.Sort(got)
		if strings.Join(got, " ") != c.want || calls == 0 {
			t.Errorf("%v: %q after %d syncs", c.answer, got, calls)
		}
		if c.answer == unix.EIO && (!errors.Is(err, unix.EIO) || len(notes) != 0) {
			t.Errorf("%v, notes %q", err, notes)
		}
		if c.answer == unix.EINVAL && (err != nil || len(notes) != 1) {
			t.Errorf("%v, notes %q", err, notes)
		}
	}
}
