// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"bytes"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// inside is set to the test's name in the process that runs it in namespaces.
const inside = "TESTKIT_NAMESPACE"

// InNamespace runs the running test once more, in a process with its own user
// and mount namespaces, in which it has the user id uid: as 0 it may mount, as
// any other it has no privileges, whoever runs the tests. It returns true
// there. In the process that asked it reports the outcome and returns false.
func InNamespace(t *testing.T, uid int) bool {
	t.Helper()
	if os.Getenv(inside) == t.Name() {
		return true
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: uid, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: uid, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Errorf("in its own namespace: %v\n%s", err, out)
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
