// SPDX-License-Identifier: Apache-2.0

package files

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

// things are what an archive has.
type things struct {
	testing.TB
	b bytes.Buffer
	w *tar.Writer
}

func newThings(t testing.TB) *things {
	a := &things{TB: t}
	a.w = tar.NewWriter(&a.b)
	return a
}

func (a *things) add(kind byte, name, rest string) *things {
	a.Helper()
	h := &tar.Header{Typeflag: kind, Name: name, Mode: 0o4755, Uid: os.Getuid(), Gid: os.Getgid(), ModTime: time.Unix(1e9, 5), Format: tar.FormatPAX}
	switch kind {
	case tar.TypeReg:
		h.Size = int64(len(rest))
	case tar.TypeSymlink, tar.TypeLink:
		h.Linkname = rest
	}
	err := a.w.WriteHeader(h)
	if kind == tar.TypeReg && err == nil {
		_, err = io.WriteString(a.w, rest)
	}
	if err != nil {
		a.Fatal(err)
	}
	return a
}

// extract makes them below name in a folder out, beside which lies one that nobody may touch.
func (a *things) extract(name string, special bool) (out string, got *Got) {
	a.Helper()
	dir := a.TempDir()
	out = filepath.Join(dir, "out")
	err := errors.Join(a.w.Close(), os.Mkdir(out, 0o700), os.Mkdir(filepath.Join(dir, "outside"), 0o700))
	if err != nil {
		a.Fatal(err)
	}
	to, err := os.Open(out)
	if err != nil {
		a.Fatal(err)
	}
	defer func() { _ = to.Close() }()
	got = &Got{}
	x := newExtractor(context.Background(), to, got, special)
	if err := errors.Join(x.all(tar.NewReader(&a.b), name), x.close()); err != nil {
		a.Fatal(err)
	}
	if left := testkit.Names(a, filepath.Join(dir, "outside")); len(left) > 0 {
		a.Errorf("outside there is %q", left)
	}
	if names := testkit.Names(a, dir); !slices.Equal(names, []string{"out", "outside"}) {
		a.Errorf("there is %q", names)
	}
	return out, got
}

func TestExtract(t *testing.T) {
	t.Parallel()
	zeros := strings.Repeat("\x00", 1<<20)
	a := newThings(t).add(tar.TypeDir, "./", "").add(tar.TypeReg, "./a", "content").add(tar.TypeDir, "./d", "").add(tar.TypeReg, "./d/b", zeros+"x"+zeros).
		add(tar.TypeSymlink, "./d/s", "/etc/passwd").add(tar.TypeLink, "./d/same", "./a").add(tar.TypeFifo, "./d/fifo", "").add(tar.TypeReg, "./z", "")
	out, got := a.extract("top", false)
	if got.Files != 4 || got.Folders != 2 || got.Links != 1 || got.Skipped != 1 || got.LeftOut != 0 {
		t.Errorf("%+v", got)
	}
	b, err := os.ReadFile(filepath.Join(out, "top/d/b"))
	if err != nil || string(b) != zeros+"x"+zeros {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if to, err := os.Readlink(filepath.Join(out, "top/d/s")); err != nil || to != "/etc/passwd" {
		t.Error(to, err)
	}
	one, err1 := os.Stat(filepath.Join(out, "top/a"))
	two, err2 := os.Stat(filepath.Join(out, "top/d/same"))
	if err1 != nil || err2 != nil || !os.SameFile(one, two) || one.Mode() != 0o755 || !one.ModTime().Equal(time.Unix(1e9, 5)) {
		t.Error(one, two, err1, err2)
	}
	if d, err := os.Stat(filepath.Join(out, "top/d")); err != nil || !d.ModTime().Equal(time.Unix(1e9, 5)) || d.Mode().Perm() != 0o755 {
		t.Error(d, err)
	}
}

// Nothing that an archive says leads out of the folder, or through a link in it.
func TestExtractHostile(t *testing.T) {
	t.Parallel()
	for name, a := range map[string]func(*things){
		"dots":         func(a *things) { a.add(tar.TypeReg, "../outside/x", "bad") },
		"dots within":  func(a *things) { a.add(tar.TypeReg, "./d/../../../outside/x", "bad") },
		"absolute":     func(a *things) { a.add(tar.TypeReg, "/tmp/imgbackup-bad", "bad") },
		"through link": func(a *things) { a.add(tar.TypeSymlink, "./l", "../../outside").add(tar.TypeReg, "./l/x", "bad") },
		"link and dir": func(a *things) {
			a.add(tar.TypeSymlink, "./l", "../../outside").add(tar.TypeDir, "./l", "").add(tar.TypeReg, "./l/x", "bad")
		},
		"over a link":   func(a *things) { a.add(tar.TypeSymlink, "./l", "../../outside/x").add(tar.TypeReg, "./l", "bad") },
		"hard link":     func(a *things) { a.add(tar.TypeLink, "./l", "../../outside") },
		"hard, by link": func(a *things) { a.add(tar.TypeSymlink, "./l", "../..").add(tar.TypeLink, "./x", "./l/outside/x") },
		"no folder":     func(a *things) { a.add(tar.TypeReg, "./never/x", "bad") },
		"twice":         func(a *things) { a.add(tar.TypeReg, "./x", "good").add(tar.TypeReg, "./x", "bad") },
		"odd type":      func(a *things) { a.add('V', "./x", "") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all := newThings(t).add(tar.TypeDir, "./", "")
			a(all)
			out, got := all.add(tar.TypeReg, "./last", "good").extract("top", false)
			if got.LeftOut == 0 || len(got.First) != int(got.LeftOut) || got.First[0].Why == "" {
				t.Errorf("nothing was left out: %+v", got)
			}
			if b, err := os.ReadFile(filepath.Join(out, "top/last")); err != nil || string(b) != "good" {
				t.Errorf("what is good was not taken: %q, %v", b, err)
			}
			if b, err := os.ReadFile(filepath.Join(out, "top/x")); err == nil && string(b) != "good" {
				t.Errorf("x is %q", b)
			}
		})
	}
}

// What was there is not replaced, and an archive that breaks off leaves whole files.
func TestExtractBroken(t *testing.T) {
	t.Parallel()
	a := newThings(t).add(tar.TypeReg, "./a", "content").add(tar.TypeReg, "./b", strings.Repeat("x", 4096))
	if err := a.w.Flush(); err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	if err := os.WriteFile(filepath.Join(out, "there"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	to, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = to.Close() }()
	if err := checkNew(to, []string{"/x/there"}); !errors.Is(err, ErrExists) {
		t.Error(err)
	}
	if err := checkNew(to, []string{"/"}); err == nil {
		t.Error("a guest goes into a folder that is not empty")
	}
	if err := checkNew(to, []string{"/a/x", "/b/x"}); err == nil {
		t.Error("two of a name")
	}
	x := newExtractor(t.Context(), to, &Got{}, false)
	if err := errors.Join(x.all(tar.NewReader(io.LimitReader(&a.b, int64(a.b.Len())-2000)), ""), x.close()); err == nil {
		t.Error("it is whole")
	}
	if names := testkit.Names(t, out); !slices.Equal(names, []string{"a", "there"}) {
		t.Errorf("there is %q", names)
	}
}

// A first entry that is no folder is left out.
func TestArchiveOfNoFolder(t *testing.T) {
	t.Parallel()
	out, got := newThings(t).add(tar.TypeLink, ".", "x").extract("etc", false)
	if got.LeftOut != 1 {
		t.Errorf("%+v in %s", got, out)
	}
}

// A file of a guest that is larger than a file can be here is left out, and nothing of it is
// there, or a file system takes it, with its holes.
func TestTooLarge(t *testing.T) {
	t.Parallel()
	to, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = to.Close() }()
	got := &Got{}
	x := newExtractor(t.Context(), to, got, false)
	h := &tar.Header{Typeflag: tar.TypeReg, Name: "vast", Size: 1 << 62, Mode: 0o600}
	err = x.one(errReader{}, h)
	if errors.Is(err, errEnd) { // so it was begun
		err, got.LeftOut = nil, got.LeftOut+1
	}
	if err != nil || got.LeftOut != 1 || got.Files != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	if left := testkit.Names(t, to.Name()); len(left) > 0 {
		t.Errorf("%q are left", left)
	}
}

var errEnd = errors.New("it ends here")

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errEnd }
