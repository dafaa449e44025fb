// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// The export as a file of the kernel's, through nbdfuse: read, and written.
func TestNbdfuse(t *testing.T) {
	t.Parallel()
	w := serveIn(t, ServerOptions{})
	dir := t.TempDir()
	mount, ready := filepath.Join(dir, "mnt"), filepath.Join(dir, "ready")
	if err := os.Mkdir(mount, 0o700); err != nil {
		t.Fatal(err)
	}
	// nbdfuse writes its number as soon as the file is there; whoever reads the
	// pipe waits for that.
	if err := unix.Mkfifo(ready, 0o600); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(mount, "disk")
	cmd := exec.CommandContext(t.Context(), "nbdfuse", "-P", ready, disk, w.uri("vda"))
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- cmd.Wait()
		// Not to wait for ever for one that never gets ready.
		if f, err := os.OpenFile(ready, os.O_WRONLY|unix.O_NONBLOCK, 0); err == nil {
			f.Close()
		}
	}()
	if pid, err := os.ReadFile(ready); err != nil || len(pid) == 0 {
		log, _ := os.ReadFile(out.Name())
		t.Fatalf("nbdfuse did not get ready: %v\n%s", err, log)
	}
	t.Cleanup(func() { _ = unix.Unmount(mount, unix.MNT_DETACH) }) // if the test ends early
	sameFile(t, disk, w.a.content())
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("written through the kernel"), 5<<20+7); err != nil {
		t.Error(err)
	}
	if err := f.Sync(); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if got := string(w.a.content()[5<<20+7:][:26]); got != "written through the kernel" || w.a.flushed() == 0 {
		t.Errorf("the device has %q, flushed %d times", got, w.a.flushed())
	}
	// Lazily: a child that another test starts has our files open until it has become another
	// program, and nbdfuse ends once nobody has.
	if err := unix.Unmount(mount, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("nbdfuse: %v", err)
	}
	if n := w.noted(); len(n) > 0 {
		t.Errorf("the server complains: %v", n)
	}
}
