// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/qemu"
)

const scriptDir = "../../testdata/script"

func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, scriptParams(t, plain, scriptNames(t)))
}

// scriptParams runs scripts with repositories that are encrypted, or not.
// In those of byHost a host backs up.
func scriptParams(t *testing.T, secret encrypted, names []string, byHost ...string) testscript.Params {
	files := make([]string, len(names))
	for i, name := range names {
		files[i] = filepath.Join(scriptDir, name+".txtar")
	}
	return testscript.Params{
		WorkdirRoot:         t.TempDir(), // its own is left behind, empty
		Files:               files,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Condition: func(name string) (bool, error) {
			switch name {
			case "encrypted":
				return bool(secret), nil
			case "soak":
				return os.Getenv("IMGBACKUP_SOAK") != "", nil
			}
			return false, fmt.Errorf("no condition has the name %q", name)
		},
		Setup: func(env *testscript.Env) error {
			env.Setenv(raceVar, os.Getenv(raceVar))
			env.Setenv(cacheVar, filepath.Join(env.WorkDir, ".cache"))
			env.Values[treesKey{}] = make(map[string][sha256.Size]byte)
			env.Values[vmKey{}] = &vm{}
			env.Values[serverKey{}] = &server{}
			source, err := filepath.Abs(scriptDir)
			env.Setenv("SOURCE", source)
			if secret {
				err = errors.Join(err, secretRepositories(t, env.Setenv))
			}
			if slices.Contains(byHost, strings.TrimPrefix(filepath.Base(env.WorkDir), "script-")) {
				err = errors.Join(err, secretHost(t, env.Setenv))
			}
			return err
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits":   scriptExits,
			"guest":   scriptGuest,
			"jq":      scriptJQ,
			"nothing": scriptNothing,
			"remember": func(ts *testscript.TestScript, _ bool, args []string) {
				for _, path := range args {
					trees(ts)[path] = digestTree(ts, path)
				}
			},
			"unchanged": scriptUnchanged,
			"flip":      scriptFlip,
			"tmpfs":     scriptTmpfs,
			"readonly":  scriptReadonly,
			"fill":      scriptFill,
			"vm":        scriptVM,
			"server":    scriptServer,
		},
	}
}

func demand(ts *testscript.TestScript, ok bool, usage string) {
	if !ok {
		ts.Fatalf("usage: %s", usage)
	}
}

// exits STATUS PROGRAM ARG… runs a program that has to end with that status.
func scriptExits(ts *testscript.TestScript, neg bool, args []string) {
	demand(ts, !neg && len(args) >= 2, "exits STATUS PROGRAM ARG…")
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
	// Who fails says why, and a program's own crash is no message.
	if stderr := ts.ReadFile("stderr"); want != 0 && args[1] == "imgbackup" &&
		(!strings.HasPrefix(stderr, "imgbackup: ") || strings.Contains(stderr, "goroutine ")) {
		ts.Fatalf("no message on stderr")
	}
}

// guest IMAGE COMMAND… lets qemu-io write to a qcow2 image.
func scriptGuest(ts *testscript.TestScript, neg bool, args []string) {
	demand(ts, !neg && len(args) >= 2, "guest IMAGE COMMAND…")
	argv := []string{"--image-opts", "driver=qcow2,file.driver=file,file.filename=" + strings.ReplaceAll(ts.MkAbs(args[0]), ",", ",,")}
	for _, c := range args[1:] {
		argv = append(argv, "-c", c)
	}
	out, err := exec.Command("qemu-io", argv...).CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("failed")) {
		ts.Fatalf("qemu-io: %v: %s", err, out)
	}
}

// jq FILTER… demands that each filter is true of the last stdout.
func scriptJQ(ts *testscript.TestScript, neg bool, args []string) {
	demand(ts, !neg && len(args) >= 1, "jq FILTER…")
	for _, filter := range args {
		cmd := exec.Command("jq", "-e", filter)
		cmd.Stdin = strings.NewReader(ts.ReadFile("stdout"))
		if out, err := cmd.CombinedOutput(); err != nil {
			ts.Fatalf("jq %s: %v: %s", filter, err, out)
		}
	}
}

// nothing PATH… demands that nothing stands there: no file, or folders without
// any file in them, hidden ones counted.
func scriptNothing(ts *testscript.TestScript, neg bool, args []string) {
	demand(ts, !neg && len(args) >= 1, "nothing PATH…")
	for _, path := range args {
		err := filepath.WalkDir(ts.MkAbs(path), func(path string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				ts.Fatalf("%s is there", path)
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			ts.Fatalf("%v", err)
		}
	}
}

type treesKey struct{}

func trees(ts *testscript.TestScript) map[string][sha256.Size]byte {
	return ts.Value(treesKey{}).(map[string][sha256.Size]byte)
}

// unchanged PATH… demands that files, and what folders hold, are byte by byte
// what they were when remember was told of them.
func scriptUnchanged(ts *testscript.TestScript, neg bool, args []string) {
	demand(ts, !neg && len(args) >= 1, "unchanged PATH…")
	for _, path := range args {
		before, ok := trees(ts)[path]
		if !ok {
			ts.Fatalf("%s was not remembered", path)
		}
		if digestTree(ts, path) != before {
			ts.Fatalf("%s has changed", path)
		}
	}
}

// digestTree covers names and bytes; empty folders do not count.
func digestTree(ts *testscript.TestScript, root string) (sum [sha256.Size]byte) {
	h := sha256.New()
	err := filepath.WalkDir(ts.MkAbs(root), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		content := sha256.Sum256(data)
		h.Write([]byte(path + "\x00"))
		h.Write(content[:])
		return nil
	})
	ts.Check(err)
	return [sha256.Size]byte(h.Sum(nil))
}

// flip PATH flips a bit in the middle of a file: of PATH, or of the first file
// below the folder PATH.
func scriptFlip(ts *testscript.TestScript, neg bool, args []string) {
	demand(ts, !neg && len(args) == 1, "flip PATH")
	var file string
	ts.Check(filepath.WalkDir(ts.MkAbs(args[0]), func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			file = path
			return fs.SkipAll
		}
		return err
	}))
	data, err := os.ReadFile(file)
	ts.Check(err)
	data[len(data)/2] ^= 4
	ts.Check(os.WriteFile(file, data, 0o600))
}

// tmpfs DIR SIZE mounts a file system of its own.
func scriptTmpfs(ts *testscript.TestScript, neg bool, args []string) {
	demand(ts, !neg && len(args) == 2, "tmpfs DIR SIZE")
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o700))
	ts.Check(unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+args[1]))
	ts.Defer(func() { unmount(ts, dir) })
}

func unmount(ts *testscript.TestScript, dir string) {
	if err := unix.Unmount(dir, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		ts.Logf("unmount %s: %v", dir, err)
		_ = unix.Unmount(dir, unix.MNT_DETACH)
	}
}

// readonly DIR makes a folder a read-only file system; with ! it makes it
// writable again.
func scriptReadonly(ts *testscript.TestScript, neg bool, args []string) {
	demand(ts, len(args) == 1, "[!] readonly DIR")
	dir := ts.MkAbs(args[0])
	if neg {
		ts.Check(unix.Unmount(dir, 0))
		return
	}
	ts.Check(unix.Mount(dir, dir, "", unix.MS_BIND, ""))
	ts.Defer(func() { unmount(ts, dir) })
	ts.Check(unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
}

// fill FILE LEAVE writes a file that leaves so many bytes of its file system
// free.
func scriptFill(ts *testscript.TestScript, neg bool, args []string) {
	demand(ts, !neg && len(args) == 2, "fill FILE LEAVE")
	leave, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	path := ts.MkAbs(args[0])
	var st unix.Statfs_t
	ts.Check(unix.Statfs(filepath.Dir(path), &st))
	n := int64(st.Bavail)*int64(st.Bsize) - leave
	if n < 0 {
		ts.Fatalf("%d bytes are free, not %d", int64(st.Bavail)*int64(st.Bsize), leave)
	}
	ts.Check(os.WriteFile(path, make([]byte, n), 0o600))
}

// vm start IMAGE lets a qemu-nbd hold a qcow2 image as a running VM does, until
// vm stop or vm kill.
func scriptVM(ts *testscript.TestScript, neg bool, args []string) {
	const usage = "vm start IMAGE | vm stop | vm kill"
	demand(ts, !neg && len(args) >= 1, usage)
	switch {
	case args[0] == "start" && len(args) == 2:
		startVM(ts, ts.MkAbs(args[1]))
	case args[0] == "stop" && len(args) == 1:
		vmOf(ts).end(ts, syscall.SIGTERM)
	case args[0] == "kill" && len(args) == 1:
		vmOf(ts).end(ts, syscall.SIGKILL)
	default:
		demand(ts, false, usage)
	}
}

// vm is the qemu-nbd of a script; there is at most one at a time.
type vm struct{ cmd *exec.Cmd }

type vmKey struct{}

func vmOf(ts *testscript.TestScript) *vm { return ts.Value(vmKey{}).(*vm) }

func startVM(ts *testscript.TestScript, image string) {
	socket := ts.MkAbs("vm.sock")
	if err := os.Remove(socket); !errors.Is(err, fs.ErrNotExist) { // of one that was killed
		ts.Check(err)
	}
	cmd := exec.Command("qemu-nbd", "--format=qcow2", "--persistent", "--socket", socket, image)
	ts.Check(cmd.Start())
	v := vmOf(ts)
	v.cmd = cmd
	ts.Defer(func() { v.end(ts, syscall.SIGKILL) })
	for range 1000 {
		var inUse *qemu.InUseError
		if _, err := os.Lstat(socket); err == nil && errors.As(qemu.ProbeWriter(image), &inUse) {
			return // it has the image, and has ended to open it
		}
		wait(10 * time.Millisecond)
	}
	ts.Fatalf("qemu-nbd did not open %s", image)
}

// wait lets a poll pause.
func wait(d time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	<-ctx.Done()
}

func (v *vm) end(ts *testscript.TestScript, sig syscall.Signal) {
	if v.cmd == nil {
		return
	}
	ended := make(chan struct{})
	go func() {
		_ = v.cmd.Wait() // it was told to end
		close(ended)
	}()
	// One that has just begun may still forget a SIGTERM.
	for gone := false; !gone; {
		if err := v.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			ts.Logf("qemu-nbd: %v", err)
		}
		select {
		case <-ended:
			gone = true
		case <-time.After(100 * time.Millisecond):
		}
	}
	v.cmd = nil
}
