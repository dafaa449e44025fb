// SPDX-License-Identifier: Apache-2.0

package outfile

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
)

func TestPlaces(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{os.WriteFile(at("old"), nil, 0o600), os.Link(at("old"), at("hard")), os.Symlink(".", at("link"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	forbidden := errors.New("forbidden")
	places := Places{Kernel: Linux(), Force: true, Outside: func(path string) error {
		if path == at("kept") {
			return forbidden
		}
		return nil
	}}
	for _, c := range []struct {
		what, path string
		err        string
	}{
		{"disk vda", "old", ""},
		{"disk vdb", "new", ""},
		{"disk vda", "other", "two targets"},
		{"disk vdc", "hard", "it and disk vda would both go to"},
		{"disk vdc", "link/new", "it and disk vdb would both go to"},
		{"disk vdc", "link/kept", "forbidden"},
		{"disk vdc", "third", ""},
	} {
		_, err := places.Add(c.what, Wanted{Path: at(c.path), Format: qcow2.Raw})
		if (err == nil) != (c.err == "") || err != nil && (!strings.Contains(err.Error(), c.err) || !errors.Is(err, usage.ErrWrong) && !errors.Is(err, forbidden)) {
			t.Errorf("%s to %s: %v", c.what, c.path, err)
		}
	}
	once := Places{Kernel: Linux()}
	if _, err := once.Add("disk vda", Wanted{Path: at("old"), Format: qcow2.Raw, Force: true}); !errors.Is(err, ErrExists) {
		t.Errorf("without force: %v", err)
	}
}

func TestInPlaceLast(t *testing.T) {
	t.Parallel()
	at := map[string]*Place{"a": {Device: true}, "b": {}, "c": nil, "d": {Reuse: true}, "e": {}}
	jobs := []string{"a", "b", "c", "d", "e"}
	InPlaceLast(jobs, func(j string) *Place { return at[j] })
	if got := strings.Join(jobs, ""); got != "beacd" {
		t.Error(got)
	}
}

// What goes to one file system is added up, and told once.
func TestSpaceNotes(t *testing.T) {
	t.Parallel()
	kernel := Linux()
	kernel.FreeSpace = func(*os.File) (int64, error) { return 100, nil }
	dir := t.TempDir()
	open := func(name string) *Output {
		out, err := Open(t.Context(), kernel, &Place{Path: filepath.Join(dir, name), Format: qcow2.Raw}, Spec{Size: 512})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = out.Discard() })
		return out
	}
	demands := []Demand{{nil, 1000}, {open("a"), 60}, {open("b"), 40}}
	if got := SpaceNotes("the restore", demands); len(got) != 0 {
		t.Errorf("%q", got)
	}
	demands = append(demands, Demand{open("c"), 1}, Demand{open("d"), 1000})
	want := []string{dir + " has 100 bytes free and up to 101 are needed: the restore may fail"}
	if got := SpaceNotes("the restore", demands); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// Where a file system has no locks, what stands there is replaced only if that is
// wanted all the same.
func TestNoLock(t *testing.T) {
	t.Parallel()
	kernel := Linux()
	hits := 0
	kernel.LockImage = func(f *os.File) error {
		hits++
		return &qemu.NoLockError{Path: f.Name(), Err: errors.ErrUnsupported}
	}
	path := filepath.Join(t.TempDir(), "old")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	at, err := Resolve(kernel, Wanted{Path: path, Format: qcow2.Raw, Force: true})
	if err != nil {
		t.Fatal(err)
	}
	var none *qemu.NoLockError
	if _, err := Open(t.Context(), kernel, at, Spec{Size: 512}); !errors.As(err, &none) || !strings.Contains(err.Error(), "--no-lock") {
		t.Errorf("no locks: %v", err)
	}
	out, err := Open(t.Context(), kernel, at, Spec{Size: 512, NoLock: true})
	if err != nil || hits != 2 {
		t.Fatal(err, hits)
	}
	if err := out.Discard(); err != nil {
		t.Error(err)
	}
}
