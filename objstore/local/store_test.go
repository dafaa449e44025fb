// SPDX-License-Identifier: Apache-2.0

package local_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/local"
)

func write(t *testing.T, s objstore.Store, key, content string) {
	t.Helper()
	if err := s.Put(t.Context(), key, strings.NewReader(content), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
		t.Fatal(err)
	}
}

func listAll(ctx context.Context, s objstore.Store, prefix string) ([]string, error) {
	var keys []string
	for info, err := range s.List(ctx, prefix) {
		if err != nil {
			return keys, err
		}
		keys = append(keys, info.Key)
	}
	return keys, nil
}

// temps returns the names in tmp/.
func temps(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "tmp"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestLocalIsAFolderOfFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := newLocal(t, dir)
	write(t, s, "packs/ab/object.zst", "content")
	path := filepath.Join(dir, "packs/ab/object.zst")
	got, err := os.ReadFile(path)
	if err != nil || string(got) != "content" {
		t.Fatalf("%q, %v", got, err)
	}
	for path, want := range map[string]fs.FileMode{path: 0o600, filepath.Dir(path): fs.ModeDir | 0o700, filepath.Join(dir, "tmp"): fs.ModeDir | 0o700} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != want {
			t.Errorf("%s has mode %v, want %v", path, info.Mode(), want)
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if links := info.Sys().(*syscall.Stat_t).Nlink; links != 1 {
		t.Errorf("the object has %d names", links)
	}
	if names := temps(t, dir); len(names) != 0 {
		t.Errorf("left in tmp: %q", names)
	}
}

func TestLocalReadingWritesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "object"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := local.Open(dir, local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if keys, err := listAll(t.Context(), s, ""); err != nil || len(keys) != 1 {
		t.Fatal(keys, err)
	}
	if _, err := objstore.ReadAll(t.Context(), s, "object", 10); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Stat(t.Context(), "a/b"); !errors.Is(err, objstore.ErrNotFound) {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), "a/b"); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestOpen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	missing := filepath.Join(dir, "missing")
	_, err := local.Open(missing, local.Options{})
	if !errors.Is(err, objstore.ErrNotFound) || !strings.Contains(err.Error(), "imgbackup init") || !strings.Contains(err.Error(), missing) {
		t.Errorf("open of a missing folder: %v", err)
	}
	if _, err := os.Stat(missing); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open made the folder: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := local.Open(file, local.Options{}); err == nil || errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("open of a file: %v", err)
	}
	// The folder itself may be a symbolic link: the user named it.
	link := filepath.Join(dir, "link")
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "real"), 0o700), os.Symlink("real", link)); err != nil {
		t.Fatal(err)
	}
	s, err := local.Open(link, local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	write(t, s, "a", "x")
	if _, err := os.Stat(filepath.Join(dir, "real/a")); err != nil {
		t.Error(err)
	}
}

func TestCreate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	deep := filepath.Join(dir, "a/b/c")
	s := newLocal(t, deep)
	if s.Dir() != deep {
		t.Errorf("dir %s, want %s", s.Dir(), deep)
	}
	for _, d := range []string{"a", "a/b", "a/b/c"} {
		info, err := os.Stat(filepath.Join(dir, d))
		if err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", d, info, err)
		}
	}
	newLocal(t, deep) // empty
	for _, name := range []string{"tmp", "lost+found"} {
		if err := os.MkdirAll(filepath.Join(deep, name, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	newLocal(t, deep) // as good as empty
	if err := os.WriteFile(filepath.Join(deep, "my thesis"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := local.Create(deep, local.Options{}); err == nil || !strings.Contains(err.Error(), "my thesis") {
		t.Errorf("create in somebody's folder: %v", err)
	}
	write(t, s, "imgbackup.json", "{}")
	newLocal(t, deep) // a repository
	if _, err := local.Create(filepath.Join(deep, "my thesis"), local.Options{}); err == nil {
		t.Error("create over a file succeeded")
	}
	if _, err := local.Create(filepath.Join(deep, "my thesis/below"), local.Options{}); err == nil {
		t.Error("create below a file succeeded")
	}
}

func TestLocalFolderRemoved(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "repo")
	s := newLocal(t, dir)
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Stat(t.Context(), "a"); err == nil || errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("stat in a removed folder: %v, which is not an absent object", err)
	}
	if keys, err := listAll(t.Context(), s, ""); err == nil {
		t.Errorf("list of a removed folder: %q without an error", keys)
	}
	if err := s.Delete(t.Context(), "a/b"); err == nil {
		t.Error("delete in a removed folder succeeded")
	}
}

// TestLocalSymlinks lays links at every place of a key.
func TestLocalSymlinks(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, link, target, key string }{
		{"folder that leads out", "packs", outside, "packs/secret"},
		{"deeper folder that leads out", "a/packs", outside, "a/packs/secret"},
		{"folder inside", "packs", "real", "packs/secret"},
		{"object that leads out", "object", filepath.Join(outside, "secret"), "object"},
		{"object inside", "object", "real/secret", "object"},
		{"dangling object", "object", "nowhere", "object"},
		{"dangling folder", "packs", "nowhere", "packs/secret"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := newLocal(t, dir)
			write(t, s, "real/secret", "inside")
			link := filepath.Join(dir, c.link)
			if err := errors.Join(os.MkdirAll(filepath.Dir(link), 0o700), os.Symlink(c.target, link)); err != nil {
				t.Fatal(err)
			}
			ctx := t.Context()
			errs := map[string]error{
				"create":  s.Put(ctx, c.key, strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Create}),
				"replace": s.Put(ctx, c.key, strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Replace}),
				"delete":  s.Delete(ctx, c.key),
			}
			_, errs["stat"] = s.Stat(ctx, c.key)
			_, errs["get"] = s.Get(ctx, c.key, 0, -1)
			_, errs["list"] = listAll(ctx, s, "")
			for op, err := range errs {
				if err == nil || errors.Is(err, objstore.ErrNotFound) || errors.Is(err, objstore.ErrExists) {
					t.Errorf("%s: %v, want an error of its own", op, err)
				}
			}
			if got, err := os.ReadFile(filepath.Join(outside, "secret")); err != nil || string(got) != "secret" {
				t.Errorf("outside: %q, %v", got, err)
			}
			if got, err := os.Readlink(link); err != nil || got != c.target {
				t.Errorf("the link: %q, %v", got, err)
			}
			if names := temps(t, dir); len(names) != 0 {
				t.Errorf("left in tmp: %q", names)
			}
		})
	}
}

func TestLocalSpecialFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := newLocal(t, dir)
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if _, err := s.Get(ctx, "pipe", 0, -1); err == nil || errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("get: %v", err)
	}
	if err := s.Put(ctx, "pipe", strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Replace}); err == nil {
		t.Error("a pipe was replaced")
	}
	if _, err := listAll(ctx, s, ""); err == nil {
		t.Error("a pipe was listed")
	}
}

func TestLocalFileInPlaceOfFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := newLocal(t, dir)
	write(t, s, "a", "x")
	err := s.Put(t.Context(), "a/b", strings.NewReader("y"), objstore.PutOptions{Mode: objstore.Create})
	if err == nil || errors.Is(err, objstore.ErrNotFound) || errors.Is(err, objstore.ErrExists) {
		t.Errorf("put below an object: %v", err)
	}
	write(t, s, "d/e", "x")
	if err := s.Put(t.Context(), "d", strings.NewReader("y"), objstore.PutOptions{Mode: objstore.Replace}); err == nil {
		t.Error("a folder was replaced by an object")
	}
	if err := s.Put(t.Context(), "d", strings.NewReader("y"), objstore.PutOptions{Mode: objstore.Create}); err == nil {
		t.Error("an object was created over a folder")
	}
	if names := temps(t, dir); len(names) != 0 {
		t.Errorf("left in tmp: %q", names)
	}
}

func TestLocalForeignNamesAreNotListed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := newLocal(t, dir)
	write(t, s, "d/object", "x")
	for _, name := range []string{"read me", "d/a:b", "lost+found/x", "tmp/y"} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if keys, err := listAll(t.Context(), s, ""); err != nil || len(keys) != 1 || keys[0] != "d/object" {
		t.Errorf("%q, %v", keys, err)
	}
}

func TestLocalSweepsStaleTemps(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	tmp := filepath.Join(dir, "tmp")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"stale", "live"} {
		if err := os.WriteFile(filepath.Join(tmp, name), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	live, err := os.Open(filepath.Join(tmp, "live"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = live.Close() }()
	if err := syscall.Flock(int(live.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	s := newLocal(t, dir)
	if _, err := s.Stat(t.Context(), "a"); !errors.Is(err, objstore.ErrNotFound) {
		t.Fatal(err)
	}
	if names := temps(t, dir); len(names) != 2 {
		t.Errorf("reading has swept: %q", names)
	}
	write(t, s, "a", "x")
	if names := temps(t, dir); len(names) != 1 || names[0] != "live" {
		t.Errorf("after the first put: %q, want only the live one", names)
	}
}

// TestLocalSweepersAndWriters lets stores begin, sweep and write at once: no
// sweeper takes a writer's file away.
func TestLocalSweepersAndWriters(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	done := make(chan error)
	const writers = 8
	for i := range writers {
		go func() {
			for j := range 20 {
				s, err := local.Open(dir, local.Options{})
				if err == nil {
					key := filepath.Join("d", string(rune('a'+i)), string(rune('a'+j)))
					err = errors.Join(s.Put(t.Context(), key, strings.NewReader(key), objstore.PutOptions{Mode: objstore.Create}), s.Close())
				}
				if err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range writers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	s, err := local.Open(dir, local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if keys, err := listAll(t.Context(), s, ""); err != nil || len(keys) != writers*20 {
		t.Errorf("%d objects, %v", len(keys), err)
	}
	if names := temps(t, dir); len(names) != 0 {
		t.Errorf("left in tmp: %q", names)
	}
}

// TestLocalReadersSeeTheOldObject: a reader that is open goes on reading what
// it opened.
func TestLocalReadersSeeTheOldObject(t *testing.T) {
	t.Parallel()
	s := newLocal(t, t.TempDir())
	write(t, s, "a", strings.Repeat("old", 1000))
	r, err := s.Get(t.Context(), "a", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	write(t, s, "a", "new")
	var b strings.Builder
	buf := make([]byte, 100)
	for n := 1; n > 0; {
		n, _ = r.Read(buf)
		b.Write(buf[:n])
	}
	if b.String() != strings.Repeat("old", 1000) {
		t.Errorf("read %.20q…", b.String())
	}
}
