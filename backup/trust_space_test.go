// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/imgbackup/imgbackup/backup"
)

// inNamespace runs the running test once more, in a process with its own user
// and mount namespaces, in which it has the user id uid: as 0 it may mount, as
// any other it has no privileges, whoever runs the tests. It returns true
// there. In the process that asked it reports the outcome and returns false.
func inNamespace(t *testing.T, uid int) bool {
	t.Helper()
	if os.Getenv("BACKUP_NAMESPACE") == t.Name() {
		return true
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "BACKUP_NAMESPACE="+t.Name())
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

// A full file system under the image: qemu-img would lose all bitmaps, so it is
// not let near it. Image, bitmaps and repository stay as they are.
func TestTrustFullFileSystem(t *testing.T) {
	t.Parallel()
	if !inNamespace(t, 0) {
		return
	}
	images := t.TempDir()
	if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", images, "tmpfs", 0, "size=16m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(images, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	l := newLabIn(t, images, t.TempDir())
	twoCheckpoints(l)
	for _, free := range []int{0, 512 << 10} {
		f, err := os.Create(l.path("filler"))
		l.must(err)
		var end int64
		for chunk := make([]byte, 64<<10); ; end += int64(len(chunk)) {
			if _, err := f.Write(chunk); err != nil {
				break
			}
		}
		l.must(f.Truncate(end - int64(free)))
		l.must(f.Close())
		for _, mode := range []backup.Mode{backup.Auto, backup.Incremental, backup.Full} {
			req := l.request("c3", l.disk("vda"))
			req.Mode = mode
			l.unchanged(func() {
				if err := l.fails(req, backup.Hooks{}); !errors.Is(err, syscall.ENOSPC) {
					t.Errorf("%d bytes are free, mode %s: %v", free, mode, err)
				}
			})
		}
	}
	l.must(os.Remove(l.path("filler")))
	l.trusted(l.backup("c3", l.disk("vda")), "c2")
	l.restoreAll()
}

// An image that must not be written to needs --no-checkpoint.
func TestTrustReadOnlyImage(t *testing.T) {
	t.Parallel()
	if !inNamespace(t, 1000) {
		return
	}
	l := newLab(t)
	twoCheckpoints(l)
	l.must(os.Chmod(l.path("vda"), 0o444))
	req := l.request("c3", l.disk("vda"))
	l.unchanged(func() {
		if err := l.fails(req, backup.Hooks{}); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("got %v, want a permission error", err)
		}
	})
	req.NoCheckpoint = true
	images := l.state(l.images)
	l.trusted(l.backupAs(req), "c2")
	if l.state(l.images) != images {
		t.Error("the image was written to")
	}
	l.restoreAll()
}
