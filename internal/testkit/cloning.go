// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// Cloning is a folder on a file system that clones files.
type Cloning struct{ Kind, Dir string }

// OnCloning runs the running test once more, in a process of its own that sees file systems which
// clone files: XFS and Btrfs, as far as this machine lets us mount them. Where it does not there is
// none of them, and the test goes on where it is. In the process that asked it reports the outcome
// and returns false.
func OnCloning(t *testing.T) (all []Cloning, here bool) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Log("without file systems that clone: only root mounts them")
		return nil, true
	}
	shell := exec.Command("bash", "-c", `"$0" "$@"; exit $?`, os.Args[0])
	if !again(t, shell, &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}) {
		return nil, false
	}
	if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"btrfs", "xfs"} {
		dir := filepath.Join(t.TempDir(), kind)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		file := dir + ".img"
		Tool(t, "truncate", "-s", "400M", file) // less is too little for XFS
		Tool(t, "mkfs."+kind, "-q", file)
		if out, err := exec.Command("mount", "-o", "loop", file, dir).CombinedOutput(); err != nil {
			t.Logf("without %s: %v: %s", kind, err, out)
			continue
		}
		t.Cleanup(func() {
			if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		all = append(all, Cloning{kind, dir})
	}
	return all, true
}
