// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// guestInit is all that runs in the guest: it tells what it finds on its root
// file system and leaves something behind there.
const guestInit = `#!/bin/sh
mount -t proc proc /proc
echo "guest: boots before this one: $(cat /boots | wc -l)"
echo boot >>/boots
sync
echo "guest: done"
poweroff -f
`

// A guest boots from an archived checkpoint whose disk is its root file system, and
// boots again from what it has written; the archive stays as it is.
func TestGuestBootsFromArchive(t *testing.T) {
	t.Parallel()
	cache, err := filepath.Abs("../../.cache/guest")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	env := append(os.Environ(), "IMGBACKUP_REPO=repo")
	tool := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir, cmd.Env = dir, env
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	for _, d := range []string{"root/bin", "root/proc", "root/dev"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := os.ReadFile(filepath.Join(cache, "busybox"))
	if err != nil {
		t.Fatalf("run make deps: %v", err)
	}
	for name, data := range map[string][]byte{"bin/busybox": busybox, "init": []byte(guestInit), "boots": nil} {
		if err := os.WriteFile(filepath.Join(dir, "root", name), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"sh", "mount", "cat", "wc", "sync", "poweroff"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "root/bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	tool("truncate", "-s", "16M", "root.img")
	tool("/sbin/mkfs.ext4", "-q", "-d", "root", "root.img")
	tool("imgbackup", "init")
	tool("imgbackup", "backup", "guest", "--disk", "vda=root.img,format=raw", "--checkpoint", "c1")
	before, err := os.ReadFile(filepath.Join(dir, "root.img"))
	if err != nil {
		t.Fatal(err)
	}
	for _, boots := range []string{"0", "1"} {
		var s server
		cmd := exec.Command("imgbackup", "serve", "guest", "--cow", "vda=scratch", "--socket", "sock")
		cmd.Dir, cmd.Env = dir, env
		if err := s.start(cmd); err != nil {
			t.Fatal(err)
		}
		vm := exec.CommandContext(t.Context(), "qemu-system-x86_64", "-accel", "tcg", "-m", "128", "-nodefaults", "-display", "none", "-serial", "stdio",
			"-no-reboot", "-kernel", filepath.Join(cache, "vmlinuz"), "-append", "root=/dev/nvme0n1 rw init=/init console=ttyS0 quiet panic=-1",
			"-drive", "if=none,id=d,format=raw,file=nbd+unix:///vda?socket=sock", "-device", "nvme,drive=d,serial=1")
		vm.Dir = dir
		out, err := vm.CombinedOutput()
		code, endErr := s.end(syscall.SIGTERM)
		if err != nil || endErr != nil || code != 0 {
			t.Fatalf("the guest: %v; the server: %d, %v\n%s%s", err, code, endErr, out, s.stderr.String())
		}
		if text := string(out); !strings.Contains(text, "guest: boots before this one: "+boots) || !strings.Contains(text, "guest: done") {
			t.Fatalf("the guest has not found %s boots before it:\n%s", boots, text)
		}
	}
	tool("imgbackup", "check", "--read-data")
	tool("nbdcopy", "--", "[", "imgbackup", "serve", "guest", "]", "after.img")
	if after, err := os.ReadFile(filepath.Join(dir, "after.img")); err != nil || !bytes.Equal(after, before) {
		t.Errorf("the checkpoint is not what it was: %v", err)
	}
}
