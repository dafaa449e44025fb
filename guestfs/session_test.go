// SPDX-License-Identifier: Apache-2.0

package guestfs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/nbd"
)

// image is a disk that is a file.
type image struct{ *os.File }

func (f image) ReadAt(_ context.Context, p []byte, off int64) error {
	_, err := f.File.ReadAt(p, off)
	return err
}

// world is some disks behind an NBD server.
type world struct {
	dir   string
	disks []Disk
}

func newWorld(t *testing.T) *world {
	dir, err := os.MkdirTemp("", "gfs") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left := testkit.Names(t, dir); len(left) != len(leftOf(left, ".img")) {
			t.Errorf("left behind: %q", left)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return &world{dir: dir}
}

func leftOf(names []string, suffix string) (some []string) {
	for _, n := range names {
		if strings.HasSuffix(n, suffix) {
			some = append(some, n)
		}
	}
	return some
}

// add makes an empty disk of that many MiB.
func (w *world) add(t *testing.T, name string, mib int64) string {
	t.Helper()
	path := filepath.Join(w.dir, name+".img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, mib<<20); err != nil {
		t.Fatal(err)
	}
	w.disks = append(w.disks, Disk{Name: name, Socket: filepath.Join(w.dir, "s")})
	return path
}

// serve offers all disks, until the test ends.
func (w *world) serve(t *testing.T) {
	t.Helper()
	var exports []nbd.Export
	for _, d := range w.disks {
		f, err := os.Open(filepath.Join(w.dir, d.Name+".img"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		exports = append(exports, nbd.Export{Name: d.Name, Size: st.Size(), Device: image{f}, ReadOnly: true})
	}
	server, err := nbd.NewServer(exports, nbd.ServerOptions{Connections: 64})
	if err != nil {
		t.Fatal(err)
	}
	l, err := nbd.ListenUnix(t.Context(), filepath.Join(w.dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// start starts an appliance that runs emulated: what KVM does is the same, if it does.
func (w *world) start(t *testing.T) *Session {
	t.Helper()
	s, err := Start(t.Context(), Options{Disks: w.disks, TempDir: w.dir, Emulate: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		verifyEnded(t, s)
	})
	return s
}

// processes are those of the session, by number.
func processes(t *testing.T, s *Session) (all []string) {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err != nil {
			continue // it has ended meanwhile
		}
		// PID (NAME) STATE PPID PGRP SESSION …
		_, rest, _ := strings.Cut(string(b), ") ")
		if f := strings.Fields(rest); len(f) > 3 && f[3] == strconv.Itoa(s.process.Cmd.Process.Pid) && f[0] != "Z" {
			all = append(all, filepath.Base(filepath.Dir(p)))
		}
	}
	return all
}

// verifyEnded makes sure that no process of the session is left.
func verifyEnded(t *testing.T, s *Session) {
	t.Helper()
	for _, pid := range processes(t, s) {
		b, err := os.ReadFile("/proc/" + pid + "/cmdline")
		t.Errorf("still there: %s %q, %v", pid, b, err)
	}
}

// verifyApart makes sure that no process of the session has rights, a network, or what
// people keep on the host.
func verifyApart(t *testing.T, s *Session) {
	t.Helper()
	own := func(pid, name string) string {
		b, err := os.ReadFile(filepath.Join("/proc", pid, name))
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	guarded := 0
	for _, pid := range processes(t, s) {
		status, command := own(pid, "status"), own(pid, "cmdline")
		want := []string{"NoNewPrivs:\t1", "CapEff:\t0000000000000000"}
		if strings.Contains(command, "\x00-sandbox\x00"+sandbox+"\x00") {
			want = append(want, "Seccomp:\t2")
			guarded++
		}
		for _, text := range want {
			if !strings.Contains(status, text) {
				t.Errorf("%q: %s is not so: %s", command, text, status)
			}
		}
		if lines := strings.Count(own(pid, "net/dev"), "\n"); lines > 3 {
			t.Errorf("%q sees network interfaces of the host: %s", command, own(pid, "net/dev"))
		}
		if text := own(pid, "limits"); !strings.Contains(text, "Max core file size        0 ") || strings.Contains(text, "Max file size             unlimited") {
			t.Errorf("%q has no limits: %s", command, text)
		}
		if os.Geteuid() != 0 {
			continue
		}
		if !strings.Contains(status, fmt.Sprintf("Uid:\t%d\t%[1]d\t%[1]d\t%[1]d\n", s.uid)) || s.uid == 0 {
			t.Errorf("%q runs as %s", command, status)
		}
		if left, err := os.ReadDir(filepath.Join("/proc", pid, "root/var")); err != nil || len(left) > 0 {
			t.Errorf("%q sees %v in /var, %v", command, left, err)
		}
	}
	if guarded != 1 {
		t.Errorf("%d processes of %q are QEMU with filters", guarded, processes(t, s))
	}
}

func tool(t *testing.T, args ...string) { t.Helper(); testkit.Tool(t, args[0], args[1:]...) }

// sfdisk divides a disk.
func sfdisk(t *testing.T, path, script string) {
	t.Helper()
	in := path + ".img"
	if err := os.WriteFile(in, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "bash", "-c", fmt.Sprintf("/sbin/sfdisk -q %s <%s", path, in))
}

func populated(t *testing.T, path string, options ...string) {
	t.Helper()
	root := t.TempDir()
	for name, text := range map[string]string{
		"etc/hostname": "guest\n", "etc/fstab": "/dev/sda1 / ext4 defaults 0 1\n", "etc/os-release": "ID=debian\nVERSION_ID=12\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n",
		"etc/debian_version": "12.1\n", "bin/sh": "x", "var/log/it's old": "x", "odd/$(touch x) \"y\"\n": "odd",
	} {
		at := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Unix(1700000000, 0)
	if err := os.Chtimes(filepath.Join(root, "var/log/it's old"), old, old); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "big"), bytes.Repeat([]byte("0123456789abcdef"), 3<<16), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/hostname", filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	tool(t, append(append([]string{"/sbin/mkfs.ext4", "-q", "-d", root}, options...), path)...)
}

// part is a partition of the disk vda in TestDisks, and what is expected of it.
type part struct {
	name, kind string // of the file system
	mib        int64
	make       func(t *testing.T, path string)
	health     Health // empty: it is not checked
	soak       bool   // its module takes the emulated appliance half a minute
}

func parts() []part {
	mkfs := func(args ...string) func(*testing.T, string) {
		return func(t *testing.T, path string) { tool(t, append(args[:len(args):len(args)], path)...) }
	}
	return []part{
		{"root", "ext4", 32, func(t *testing.T, p string) { populated(t, p) }, Clean, false},
		{"broken", "ext4", 8, func(t *testing.T, p string) {
			tool(t, "/sbin/mkfs.ext4", "-q", p)
			tool(t, "/sbin/debugfs", "-w", "-R", "clri <11>", p)
		}, Damaged, false},
		{"xfs", "xfs", 300, mkfs("/sbin/mkfs.xfs", "-q"), Clean, true},
		{"bad-xfs", "xfs", 300, func(t *testing.T, p string) {
			tool(t, "/sbin/mkfs.xfs", "-q", p)
			tool(t, "/usr/sbin/xfs_db", "-x", "-c", "agi 1", "-c", "write count 77", p)
		}, Damaged, true},
		{"btrfs", "btrfs", 128, mkfs("/sbin/mkfs.btrfs", "-q"), Clean, true},
		{"ntfs", "ntfs", 8, mkfs("/sbin/mkntfs", "-q", "-Q", "-F"), Clean, true},
		{"luks", TypeLUKS, 36, inner, "", false},
		{"swap", TypeSwap, 8, mkfs("/sbin/mkswap", "-q"), "", true},
		{"hole", TypeUnknown, 8, func(*testing.T, string) {}, "", true},
	}
}

// inner makes a LUKS volume, with the key that [innerKey] returns, of what was made by:
// pvcreate, vgcreate inner, lvcreate data, mkfs ext4.
func inner(t *testing.T, path string) {
	t.Helper()
	key, plain := path+".key.img", path+".plain.img"
	if err := os.WriteFile(key, []byte("se=cret"), 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "zstd", "-q", "-d", "-f", "--sparse", "testdata/inner.zst", "-o", plain)
	tool(t, "qemu-img", "convert", "-f", "raw", "-O", "luks", "--object", "secret,id=key,file="+key, "-o", "key-secret=key,iter-time=1", plain, path)
	tool(t, "truncate", "-s", "36M", path)
}

// All kinds of volumes, in one appliance, which takes its time: XFS, Btrfs, NTFS and the
// recognition of operating systems, which take most of it, only with IMGBACKUP_SOAK set. vda is divided by GPT, vdb by MBR, vdc by LVM, and vdd is Windows's.
func TestDisks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	soak := os.Getenv("IMGBACKUP_SOAK") != ""
	all := slices.DeleteFunc(parts(), func(p part) bool { return p.soak && !soak })
	w.addParts(t, all)
	mbr := w.add(t, "vdb", 32)
	sfdisk(t, mbr, "label: dos\n2048,16384,c\n20480,,c\n")
	tool(t, "/sbin/mkfs.vfat", "-a", "--offset", "2048", mbr, "8192")
	tool(t, "/sbin/mkfs.vfat", "-a", "--offset", "20480", mbr, "20480")
	at(t, mbr, 20480*512+512+8, []byte("no FAT here, nor a copy of the other")) // behind the boot sector
	// Of the host's own name, perhaps, made by: part-disk, pvcreate, vgcreate vg0,
	// lvcreate root and data, mkfs ext4.
	tool(t, "zstd", "-q", "-d", "-f", "--sparse", "testdata/lvm.zst", "-o", w.add(t, "vdc", 64))
	dynamic := w.add(t, "vdd", 8)
	sfdisk(t, dynamic, "label: dos\n2048,,42\n")
	at(t, dynamic, privHead, []byte("PRIVHEAD"))
	w.serve(t)
	luks := 1 + slices.IndexFunc(all, func(p part) bool { return p.kind == TypeLUKS })
	s := w.start(t)
	verifyApart(t, s)
	ctx := t.Context()
	testKeys(t, s, fmt.Sprintf("/dev/sda%d", luks))
	tables, err := s.Tables(ctx)
	if err != nil || fmt.Sprint(tables) != "[{vda gpt} {vdb msdos} {vdc msdos} {vdd msdos}]" {
		t.Errorf("partition tables %v, %v", tables, err)
	}
	volumes, err := s.Volumes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	verify := func(device, disk, kind string, health Health) {
		t.Helper()
		v, ok := Find(volumes, device)
		if !ok || v.Type != kind || fmt.Sprint(v.Disks) != "["+disk+"]" || v.HasFiles() != (health != "") {
			t.Errorf("%s is %+v, want %s on %s", device, v, kind, disk)
		}
		if health == "" {
			return
		}
		verdict, err := s.Check(ctx, v)
		if err != nil {
			t.Fatal(err)
		}
		if verdict.Health != health || verdict.Unclean || verdict.Said == "" {
			t.Errorf("%s, %s: %+v, want %s", device, kind, verdict, health)
		}
	}
	verify(s.devices[0]+"1", "vda", "ext4", Clean)
	if soak {
		testSystems(t, s) // before it is looked at what is broken
	} else if err := s.MountVolume(ctx, s.devices[0]+"1"); err != nil {
		t.Fatal(err)
	}
	testFiles(t, s)
	for i, p := range all[1:] {
		verify(fmt.Sprintf("%s%d", s.devices[0], i+2), "vda", p.kind, p.health)
	}
	verify(s.devices[1]+"1", "vdb", "vfat", Clean)
	verify(s.devices[1]+"2", "vdb", "vfat", Damaged)
	verify("/dev/vg0/root", "vdc", "ext4", Clean)
	verify("/dev/inner/data", "vda", "ext4", Clean) // in the LUKS volume
	verify(s.devices[3]+"1", "vdd", TypeDynamic, "")
}

// testKeys: what is no key of a volume, or no volume, opens nothing; its key opens it.
func testKeys(t *testing.T, s *Session, luks string) {
	t.Helper()
	for want, k := range map[string]Key{
		"it is no LUKS volume": {Device: "/dev/sda1", Secret: []byte("se=cret")},
		"it lies on vda, not":  {Device: luks, Disk: "vdb", Secret: []byte("se=cret")},
		"No key available":     {Device: luks, Secret: []byte("se=cre")},
		"/dev/sda99":           {Device: "/dev/sda99", Secret: []byte("se=cret")},
	} {
		var locked *LockedError
		if err := s.open(t.Context(), &k); !errors.As(err, &locked) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "se=cre") {
			t.Errorf("%s, %s: %v", k.Device, k.Secret, err)
		}
	}
	right := []Key{{Device: luks, Disk: "vda", Secret: []byte("se=cret\n")}}
	if err := s.unlock(t.Context(), right); err != nil {
		t.Fatal(err)
	}
}

// addParts makes the disk vda of partitions.
func (w *world) addParts(t *testing.T, all []part) {
	t.Helper()
	total := int64(2)
	for _, p := range all {
		total += p.mib
	}
	disk := w.add(t, "vda", total)
	script, start := "label: gpt\n", int64(1)
	for _, p := range all {
		path := filepath.Join(w.dir, p.name+".img")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, p.mib<<20); err != nil {
			t.Fatal(err)
		}
		p.make(t, path)
		tool(t, "dd", "status=none", "bs=1M", "conv=notrunc,sparse", fmt.Sprintf("seek=%d", start), "if="+path, "of="+disk)
		script += fmt.Sprintf("%d,%d\n", start*2048, p.mib*2048)
		start += p.mib
	}
	sfdisk(t, disk, script)
}

func at(t *testing.T, path string, off int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(b, off)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func testSystems(t *testing.T, s *Session) {
	systems, err := s.Systems(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(systems) != 1 {
		t.Fatalf("%d operating systems: %+v", len(systems), systems)
	}
	if o := systems[0]; o.Root != s.devices[0]+"1" || o.Type != "linux" || o.Distro != "debian" || o.Major != 12 || o.Hostname != "guest" {
		t.Errorf("the operating system is %+v", o)
	}
	if missing, err := s.MountSystem(t.Context(), systems[0]); err != nil || len(missing) > 0 {
		t.Fatalf("%v, %v", missing, err)
	}
}

// testFiles is about what is mounted.
func testFiles(t *testing.T, s *Session) {
	ctx := t.Context()
	read := func(path string, off, limit int64) string {
		t.Helper()
		var b bytes.Buffer
		if _, err := s.ReadFile(ctx, path, &b, off, limit); err != nil {
			t.Error(err)
		}
		return b.String()
	}
	if got := read("/etc/hostname", 0, 100); got != "guest\n" {
		t.Errorf("the host's name is %q", got)
	}
	if got := read("/link", 1, 3); got != "ues" {
		t.Errorf("a part through a link is %q", got)
	}
	if got := read("/odd/$(touch x) \"y\"\n", 0, 100); got != "odd" {
		t.Errorf("the file of an odd name is %q", got)
	}
	if got := read("/big", 0, 1<<30); got != strings.Repeat("0123456789abcdef", 3<<16) {
		t.Errorf("a file of several pieces has %d bytes, or others", len(got))
	}
	if got, err := s.Checksum(ctx, "/etc/hostname"); err != nil || got != fmt.Sprintf("%x", sha256.Sum256([]byte("guest\n"))) {
		t.Errorf("checksum %q, %v", got, err)
	}
	for _, path := range []string{"/etc/nothing", "/etc/nothing\nls /", "/etc/hostname/x"} {
		if _, err := s.Stat(ctx, path); err == nil || path != "/etc/hostname/x" && !errors.Is(err, ErrNoFile) {
			t.Errorf("%q: %v", path, err)
		}
	}
	if _, err := s.Stat(ctx, "etc"); err == nil {
		t.Error("a path without a slash at its beginning is taken")
	}
	if i, err := s.Lstat(ctx, "/link"); err != nil || i.Mode&unix.S_IFMT != unix.S_IFLNK {
		t.Errorf("the link is %+v, %v", i, err)
	}
	if at, which, err := s.Newest(ctx, "/var", time.Now().Add(time.Hour)); err != nil || at.Unix() != 1700000000 || which != "/var/log/it's old" {
		t.Errorf("the newest is %s of %v, %v", which, at, err)
	}
	if at, _, err := s.Newest(ctx, "/etc", time.Now().Add(time.Hour)); err != nil || time.Since(at) > time.Hour {
		t.Errorf("the newest is of %v, %v", at, err)
	}
}
