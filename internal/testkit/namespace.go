// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"bytes"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// inside is set to the test's name in the process that runs it once more.
const inside = "TESTKIT_INSIDE"

// InNamespace runs the running test once more, in a process with its own user
// and mount namespaces, in which it has the user id uid: as 0 it may mount, as
// any other it has no privileges, whoever runs the tests. It returns true
// there. In the process that asked it reports the outcome and returns false.
func InNamespace(t *testing.T, uid int) bool {
	t.Helper()
	return again(t, exec.Command(os.Args[0]), &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: uid, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: uid, HostID: os.Getgid(), Size: 1}},
	})
}

// OwnMachine runs the running test once more, in a process that has these folders for
// itself, empty, for daemons that have fixed ones; all that it starts ends with it. It
// returns as [InNamespace] does. The tests have to be run by root.
func OwnMachine(t *testing.T, folders ...string) bool {
	t.Helper()
	// A shell is the process 1, which has to reap what daemons leave behind.
	shell := exec.Command("bash", "-c", `"$0" "$@"; exit $?`, os.Args[0])
	if !again(t, shell, &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID}) {
		return false
	}
	Mount(t, "none", "/proc", "proc", 0, "")
	for _, folder := range folders {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		Mount(t, "none", folder, "tmpfs", 0, "")
	}
	return true
}

// again runs the running test in another process, by a command that lacks the test's
// arguments, and returns true there.
func again(t *testing.T, cmd *exec.Cmd, attr *syscall.SysProcAttr) bool {
	t.Helper()
	if os.Getenv(inside) == t.Name() {
		return true
	}
	cmd.Args = append(cmd.Args, "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"="+t.Name())
	cmd.SysProcAttr = attr
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Errorf("in its own process: %v\n%s", err, out)
	}
	return false
}

// Mount mounts something at dir until the test ends, seen by this process only, which
// has to be in a namespace of [InNamespace] as user 0.
func Mount(t testing.TB, source, dir, kind string, flags uintptr, data string) {
	t.Helper()
	if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount(source, dir, kind, flags, data); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}
