// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/internal/testkit"
)

// script makes a program that stands for qemu-img.
func script(t testing.TB, text string) Img {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qemu-img")
	testkit.Program(t, path, "#!/bin/sh\n"+text)
	return Img{Program: path}
}

// A writer gets a session of its own, no input, and no environment.
func TestQemuImgSurroundings(t *testing.T) {
	t.Parallel()
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out")
	q := script(t, fmt.Sprintf(`{ cut -d' ' -f6 /proc/$$/stat; echo $$; readlink /proc/$$/fd/0; pwd; tr '\0' '\n' </proc/$$/environ; echo "args $*"; } >'%s'`, out))
	q.Access = confine.Access{Read: []string{"/proc"}, Make: []string{filepath.Dir(out)}}
	if err := q.BitmapAdd(t.Context(), image, "n", 512); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	want := []string{lines[1], lines[1], "/dev/null", filepath.Dir(image),
		`args bitmap --add -g 512 -- json:{"backing":null,"driver":"qcow2","file":{"driver":"file","filename":"` + image + `"}} n`}
	if !slices.Equal(lines, want) {
		t.Fatalf("got %q, want %q", lines, want)
	}
}

func TestQemuImgIsNotInstalled(t *testing.T) {
	t.Parallel()
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"qemu-img-that-is-nowhere", filepath.Join(t.TempDir(), "none")} {
		err := Img{Program: program}.BitmapAdd(t.Context(), image, "n", 512)
		if err == nil || !strings.Contains(err.Error(), "qemu-utils") {
			t.Fatalf("got %v", err)
		}
	}
}

// A writer that has begun is waited for, whatever happens to us; a reader is not.
func TestQemuImgIsWaitedFor(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, fifo := range []string{"begun", "go"} {
		if err := unix.Mkfifo(filepath.Join(dir, fifo), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	q := script(t, fmt.Sprintf("cd '%s'; echo >begun; read x <go; echo >done", dir))
	q.Access.Make = []string{dir}
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- q.BitmapAdd(ctx, image, "n", 512) }()
	if _, err := os.ReadFile(filepath.Join(dir, "begun")); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := os.WriteFile(filepath.Join(dir, "go"), []byte("\n"), 0); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "done")); err != nil {
		t.Fatal("it was not waited for")
	}

	ctx, cancel = context.WithCancel(t.Context())
	go func() {
		_, err := q.CheckRefcounts(ctx, image)
		result <- err
	}()
	if _, err := os.ReadFile(filepath.Join(dir, "begun")); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Fatalf("the check ended with %v", err)
	}
}

// When we are killed, our flock stays with the qemu-img that we have started until it ends.
func TestQemuImgKeepsTheFlock(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, fifo := range []string{"begun", "go"} {
		if err := unix.Mkfifo(filepath.Join(dir, fifo), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	q := script(t, fmt.Sprintf("cd '%s'; echo >begun; read x <go", dir))
	q.Access.Make = []string{dir}
	held, err := FlockImage(t.Context(), image, 0)
	if err != nil {
		t.Fatal(err)
	}
	q.Flock = held
	result := make(chan error, 1)
	go func() { result <- q.BitmapAdd(t.Context(), image, "n", 512) }()
	if _, err := os.ReadFile(filepath.Join(dir, "begun")); err != nil {
		t.Fatal(err)
	}
	// Our descriptor goes as with our death, without an unlock.
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if err := sys.Control(held.file, func(fd int) error { return unix.Dup3(int(null.Fd()), fd, unix.O_CLOEXEC) }); err != nil {
		t.Fatal(err)
	}
	defer held.file.Close()
	var busy *BusyError
	if _, err := FlockImage(t.Context(), image, 0); !errors.As(err, &busy) {
		t.Fatalf("got %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "go"), []byte("\n"), 0); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	again, err := FlockImage(t.Context(), image, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}

// An exit status of 0 is not believed.
func TestQemuImgLies(t *testing.T) {
	t.Parallel()
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"echo 'qemu-img: Lost persistent bitmaps during inactivation of node' >&2": "Lost persistent",
		"echo something >&2; exit 1":            `exit status 1: "something"`,
		"kill -9 $$":                            "ended by a signal",
		"head -c 1000000 /dev/zero >&2; exit 1": "exit status 1",
	} {
		err := script(t, text).BitmapAdd(t.Context(), image, "n", 512)
		if err == nil || !strings.Contains(err.Error(), want) || len(err.Error()) > 3000 {
			t.Errorf("%q: %v", text, err)
		}
	}
	for _, text := range []string{"exit 0", "echo '{}'", "echo nonsense", "echo '{\"check-errors\":0}'; exit 2", "exit 1", "exit 63", "echo '{\"check-errors\":-1}'"} {
		if r, err := script(t, text).CheckRefcounts(t.Context(), image); err == nil {
			t.Errorf("%q: %+v", text, r)
		}
	}
	if r, err := script(t, `echo '{"check-errors":1}'; exit 2`).CheckRefcounts(t.Context(), image); err != nil || r.Err() == nil {
		t.Errorf("check-errors: %+v, %v", r, err)
	}
}

// What makes new files is killed when its context ends, and says what failed.
func TestImgRun(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	out, err := script(t, `pwd; echo "$@"`).Run(t.Context(), dir, "info", "a b")
	if err != nil || string(out) != dir+"\ninfo a b\n" {
		t.Errorf("%q, %v", out, err)
	}
	_, err = script(t, "echo said; echo why >&2; exit 3").Run(t.Context(), dir, "compare")
	if err == nil || !strings.Contains(err.Error(), "qemu-img compare: exit status 3") || !strings.Contains(err.Error(), "said") || !strings.Contains(err.Error(), "why") {
		t.Errorf("%v", err)
	}
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Status != 3 {
		t.Errorf("%#v", err)
	}
	given, err := os.CreateTemp(dir, "given")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = given.Close() }()
	handed := script(t, "echo here >&3")
	handed.Files = []*os.File{given}
	if _, err := handed.Run(t.Context(), dir, "info"); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(given.Name()); err != nil || string(got) != "here\n" {
		t.Errorf("%q, %v", got, err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "begun"), 0o600); err != nil {
		t.Fatal(err)
	}
	cause := errors.New("cause")
	ctx, cancel := context.WithCancelCause(t.Context())
	result := make(chan error, 1)
	q := script(t, "echo >begun; exec sleep 1000")
	q.Access.Make = []string{dir}
	go func() {
		_, err := q.Run(ctx, dir, "convert")
		result <- err
	}()
	if _, err := os.ReadFile(filepath.Join(dir, "begun")); err != nil {
		t.Fatal(err)
	}
	cancel(cause)
	if err := <-result; !errors.Is(err, cause) {
		t.Errorf("cancelled: %v", err)
	}
}
