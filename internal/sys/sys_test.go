// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func openDir(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestRestart(t *testing.T) {
	t.Parallel()
	for _, last := range []error{nil, unix.EIO} {
		left := 3
		err := Restart(func() error {
			if left--; left > 0 {
				return unix.EINTR
			}
			return last
		})
		if left != 0 || !errors.Is(err, last) {
			t.Errorf("%d calls left, %v", left, err)
		}
	}
	f := openDir(t, t.TempDir())
	_ = f.Close()
	if err := Control(f, func(int) error { t.Error("called with a closed file"); return nil }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a closed file: %v", err)
	}
}

// An interrupted flock is asked for again, and each answer is told from the others.
func TestTryLockAnswers(t *testing.T) {
	t.Parallel()
	f := openDir(t, t.TempDir())
	for _, c := range []struct {
		answer error
		want   error
	}{
		{nil, nil}, {unix.EWOULDBLOCK, ErrLocked}, {unix.ENOLCK, ErrNoLocks}, {unix.EOPNOTSUPP, ErrNoLocks},
		{unix.ENOSYS, ErrNoLocks}, {unix.EINVAL, ErrNoLocks}, {unix.EBADF, ErrNoLocks}, {unix.EIO, unix.EIO},
	} {
		interrupts := 2
		err := tryLock(f, func(fd, how int) error {
			if fd != int(f.Fd()) || how != unix.LOCK_EX|unix.LOCK_NB {
				t.Errorf("flock(%d, %d)", fd, how)
			}
			if interrupts--; interrupts >= 0 {
				return unix.EINTR
			}
			return c.answer
		})
		if interrupts != -1 || !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%v: %v; %d interrupts left", c.answer, err, interrupts)
		}
		if err != nil && !strings.Contains(err.Error(), f.Name()) {
			t.Errorf("the file is not named: %v", err)
		}
	}
}

func TestLockWaits(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, second := openDir(t, dir), openDir(t, dir)
	if err := TryLock(first); err != nil {
		t.Fatal(err)
	}
	if err := Lock(t.Context(), second, 0); !errors.Is(err, ErrLocked) {
		t.Errorf("without waiting: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- Lock(ctx, second, time.Hour) }()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	go func() { ended <- Lock(t.Context(), second, time.Hour) }()
	if err := Unlock(first); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("after it was given up: %v", err)
	}
	if err := TryLock(first); !errors.Is(err, ErrLocked) {
		t.Errorf("the second has it: %v", err)
	}
}

func TestRetry(t *testing.T) {
	t.Parallel()
	passing, lasting := errors.New("passes"), errors.New("lasts")
	passes := func(err error) bool { return errors.Is(err, passing) }
	for _, c := range []struct {
		wait  time.Duration
		give  []error
		want  error
		tries int
	}{
		{time.Hour, []error{nil}, nil, 1},
		{time.Hour, []error{passing, passing, nil}, nil, 3},
		{time.Hour, []error{passing, lasting}, lasting, 2},
		{0, []error{passing}, passing, 1},
	} {
		tries := 0
		err := Retry(t.Context(), c.wait, passes, func() error { tries++; return c.give[tries-1] })
		if !errors.Is(err, c.want) || tries != c.tries {
			t.Errorf("%v: %d tries, %v", c.give, tries, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := Retry(ctx, time.Hour, passes, func() error { cancel(); return passing })
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "passes") {
		t.Errorf("cancelled while waiting: %v", err)
	}
	if err := Retry(ctx, time.Hour, passes, func() error { t.Error("tried"); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: %v", err)
	}
}

// What is locked stays, what nobody has locked goes, and other names are left alone.
func TestSweep(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	dir := openDir(t, path)
	n := 0
	name := func() string { n++; return fmt.Sprintf("ours-%d", n) }
	file, fileName, err := CreateLocked(dir, name, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	folder, folderName, err := MkdirLocked(dir, name, 0o700)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"ours-left/deep", "ours-full", "other"} {
		if err := os.MkdirAll(filepath.Join(path, p), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []string{"ours-file", "ours-left/deep/f", "ours-left/g", "ours-full/h", "other/i", "file"} {
		if err := os.WriteFile(filepath.Join(path, p), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	outside := t.TempDir()
	for _, link := range []string{"ours-link", "ours-left/link"} {
		if err := os.Symlink(outside, filepath.Join(path, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(outside, "kept"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(path, "ours-fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Sweep(dir, func(name string, folder bool) bool {
		return strings.HasPrefix(name, "ours-") && (!folder || name != "ours-full")
	}); err != nil {
		t.Fatal(err)
	}
	want := []string{"file", "other", fileName, folderName, "ours-fifo", "ours-full", "ours-link"}
	if got := names(t, path); !slices.Equal(got, want) {
		t.Errorf("left %q, want %q", got, want)
	}
	if got := names(t, outside); len(got) != 1 {
		t.Error("a symbolic link was followed")
	}
	_, _ = file.Close(), folder.Close()
	if err := Sweep(dir, func(string, bool) bool { return true }); err != nil {
		t.Fatal(err)
	}
	if got := names(t, path); !slices.Equal(got, []string{"ours-fifo", "ours-link"}) {
		t.Errorf("left %q after all was closed", got)
	}
}

// A name that is taken is not touched; another is tried.
func TestCreateLockedTakesNoName(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	dir := openDir(t, path)
	if err := os.WriteFile(filepath.Join(path, "a"), []byte("theirs"), 0o600); err != nil {
		t.Fatal(err)
	}
	left := []string{"a", "b"}
	next := func() string { n := left[0]; left = left[1:]; return n }
	f, name, err := CreateLocked(dir, next, 0o600)
	if err != nil || name != "b" {
		t.Fatal(name, err)
	}
	defer func() { _ = f.Close() }()
	if b, err := os.ReadFile(filepath.Join(path, "a")); err != nil || string(b) != "theirs" {
		t.Errorf("%q, %v", b, err)
	}
	if err := TryLock(openDir(t, filepath.Join(path, "b"))); !errors.Is(err, ErrLocked) {
		t.Errorf("the new file: %v", err)
	}
	if _, _, err := MkdirLocked(dir, func() string { return "a" }, 0o700); err == nil {
		t.Error("a folder under a name that is always taken")
	}
}

func TestNamed(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	dir := openDir(t, path)
	for _, n := range []string{"a", "b"} {
		if err := os.WriteFile(filepath.Join(path, n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a := openDir(t, filepath.Join(path, "a"))
	if err := os.Link(filepath.Join(path, "a"), filepath.Join(path, "c")); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"a": true, "b": false, "c": true, "d": false} {
		if got, err := Named(dir, name, a); err != nil || got != want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// A file system that cannot sync folders is told of once; a failure is one.
func TestFolderSyncer(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	for _, answer := range []error{unix.EINVAL, unix.EOPNOTSUPP, unix.ENOSYS, unix.EBADF} {
		var notes []string
		calls := 0
		s := &FolderSyncer{Note: func(msg string) { notes = append(notes, msg) }, Call: func(*os.File) error {
			if calls++; calls == 1 {
				return unix.EINTR
			}
			return &os.PathError{Op: "sync", Path: path, Err: answer}
		}}
		for range 2 {
			if err := s.SyncPath(path); err != nil {
				t.Errorf("%v: %v", answer, err)
			}
		}
		if calls != 3 || len(notes) != 1 || !strings.Contains(notes[0], path) {
			t.Errorf("%v: %d calls, notes %q", answer, calls, notes)
		}
	}
	for _, answer := range []error{unix.EIO, unix.ENOSPC, unix.EDQUOT} {
		s := &FolderSyncer{Note: func(msg string) { t.Error(msg) }, Call: func(*os.File) error { return answer }}
		if err := s.SyncPath(path); !errors.Is(err, answer) {
			t.Errorf("%v: %v", answer, err)
		}
	}
	var real FolderSyncer
	if err := real.SyncPath(path); err != nil {
		t.Error(err)
	}
	if err := real.SyncPath(filepath.Join(path, "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestFreeSpace(t *testing.T) {
	t.Parallel()
	n, err := FreeSpace(openDir(t, t.TempDir()))
	if err != nil || n <= 0 {
		t.Errorf("%d, %v", n, err)
	}
	for _, c := range []struct {
		blocks, size uint64
		want         int64
	}{{10, 4096, 40960}, {1 << 60, 4096, plenty}, {5, 0, plenty}, {1, 1 << 63, plenty}, {0, 4096, 0}} {
		if got := bytesOf(c.blocks, c.size); got != c.want {
			t.Errorf("%d blocks of %d: %d", c.blocks, c.size, got)
		}
	}
}
