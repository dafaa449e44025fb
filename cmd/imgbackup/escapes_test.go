// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

// escape is an image that would have whoever reads it open something else.
type escape struct {
	format string
	make   func(e *escapes, path string)
	want   string // what is said of it; empty: it is backed up, as what it is
}

// escapes are made in a folder of images, beside one with what nobody may open.
type escapes struct {
	testing.TB
	images, secret string
	port           int // of this machine, on which nobody is to connect
}

func (e *escapes) canary() string { return filepath.Join(e.secret, "canary.raw") }

// backed makes an image whose header names a backing file.
func backed(name func(e *escapes) string) func(*escapes, string) {
	return func(e *escapes, path string) {
		testkit.ToolIn(e, e.images, "qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", name(e), path, "1M")
	}
}

// dataFile makes an image whose header names a data file.
func dataFile(name func(e *escapes) string) func(*escapes, string) {
	return func(e *escapes, path string) {
		want := name(e)
		made := (e.images + "/" + strings.Repeat("d", 300))[:max(len(want), len(e.images)+2)]
		testkit.Tool(e, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+made, path, "1M")
		data, err := os.ReadFile(path)
		if err == nil {
			if n := bytes.Count(data, []byte(made)); n != 1 || len(made) != len(want) {
				e.Fatalf("the name of the data file is there %d times: %s, %s", n, made, want)
			}
			err = os.WriteFile(path, bytes.Replace(data, []byte(made), []byte(want), 1), 0o600)
		}
		if err != nil {
			e.Fatal(err)
		}
	}
}

func always(text string) func(*escapes) string { return func(*escapes) string { return text } }

// allEscapes are those of docs/security.md.
func allEscapes() map[string]escape {
	return map[string]escape{
		"backing-absolute": {"qcow2", backed((*escapes).canary), "outside of the image's folder"},
		"backing-relative": {"qcow2", backed(always("../secret/canary.raw")), "outside of the image's folder"},
		"backing-json": {"qcow2", backed(func(e *escapes) string {
			return `json:{"driver":"raw","file":{"driver":"file","filename":"` + e.canary() + `"}}`
		}), "with a protocol"},
		"backing-file-protocol": {"qcow2", backed(func(e *escapes) string { return "file:" + e.canary() }), "with a protocol"},
		"backing-nbd":           {"qcow2", backed(func(e *escapes) string { return fmt.Sprintf("nbd://127.0.0.1:%d/x", e.port) }), "with a protocol"},
		"backing-nbd-unix":      {"qcow2", backed(func(e *escapes) string { return "nbd:unix:" + filepath.Join(e.secret, "socket") }), "with a protocol"},
		"backing-ssh":           {"qcow2", backed(always("ssh://127.0.0.1/etc/passwd")), "with a protocol"},
		"backing-loop-device":   {"qcow2", backed(always("/dev/loop0")), "its backing file"},
		"backing-dm":            {"qcow2", backed(always("/dev/mapper/control")), "its backing file"},
		"backing-host-device":   {"qcow2", backed(always("host_device:/dev/loop0")), "with a protocol"},
		"backing-proc":          {"qcow2", backed(always("/proc/self/mem")), "outside of the image's folder"},
		"backing-symlink": {"qcow2", func(e *escapes, path string) {
			if err := os.Symlink("../secret/canary.raw", filepath.Join(e.images, "inside.raw")); err != nil {
				e.Fatal(err)
			}
			backed(always("inside.raw"))(e, path)
		}, "outside of the image's folder"},
		"backing-symlinked-folder": {"qcow2", func(e *escapes, path string) {
			if err := os.Symlink("../secret", filepath.Join(e.images, "folder")); err != nil {
				e.Fatal(err)
			}
			backed(always("folder/canary.raw"))(e, path)
		}, "outside of the image's folder"},
		"backing-fifo": {"qcow2", func(e *escapes, path string) {
			if err := unix.Mkfifo(filepath.Join(e.images, "fifo"), 0o600); err != nil {
				e.Fatal(err)
			}
			backed(always("fifo"))(e, path)
		}, "fifo"},
		"backing-itself": {"qcow2", func(e *escapes, path string) { backed(always(filepath.Base(path)))(e, path) }, "comes back to the same file"},
		"data-absolute":  {"qcow2", dataFile((*escapes).canary), "outside of the image's folder"},
		"data-relative":  {"qcow2", dataFile(always("../images/../secret/.//////////////////////////////////////////////////////////canary.raw")), "outside of the image's folder"},
		"data-json":      {"qcow2", dataFile(func(e *escapes) string { return `json:{"driver":"file","filename":"` + e.canary() + `"}` }), "with a protocol"},
		"data-nbd":       {"qcow2", dataFile(func(e *escapes) string { return fmt.Sprintf("nbd://127.0.0.1:%d/%0200d", e.port, 0) }), "with a protocol"},
		// A guest can write a header into its raw disk.
		"raw-with-header": {"raw", func(e *escapes, path string) {
			backed((*escapes).canary)(e, path)
			if err := os.Truncate(path, 1<<20); err != nil {
				e.Fatal(err)
			}
		}, ""},
		"vmdk-extent": {"vmdk", func(e *escapes, path string) {
			text := "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\n" +
				"RW 2048 FLAT \"" + e.canary() + "\" 0\n\nddb.adapterType = \"ide\"\n"
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				e.Fatal(err)
			}
		}, "those that are one file are read"},
		"qed-backing": {"qed", func(e *escapes, path string) {
			testkit.Tool(e, "qemu-img", "create", "-q", "-f", "qed", "-u", "-F", "raw", "-b", e.canary(), path, "1M")
		}, "with a backing file are not opened"},
	}
}

const escapeXML = `<domain type='kvm'><name>%[1]s</name><memory>1024</memory><os><type>hvm</type></os><devices>
<disk type='file' device='disk'><driver name='qemu' type='%[2]s'/><source file='%[3]s'/><target dev='vda'/></disk></devices></domain>`

// TestEscapes: whatever an image's header names, nothing of it is opened and nobody is connected to,
// by imgbackup or what it starts. strace watches, which sees it done where nothing is confined.
func TestEscapes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e := &escapes{TB: t, images: filepath.Join(dir, "images"), secret: filepath.Join(dir, "secret"), port: 10809}
	definitions, repo := filepath.Join(dir, "definitions"), filepath.Join(dir, "repo")
	for _, d := range []string{e.images, e.secret, definitions} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(e.canary(), bytes.Repeat([]byte("secret"), 1<<20/6), 0o600); err != nil {
		t.Fatal(err)
	}
	all := allEscapes()
	for name, c := range all {
		path := filepath.Join(e.images, name)
		c.make(e, path)
		xml := fmt.Sprintf(escapeXML, name, c.format, path)
		if err := os.WriteFile(filepath.Join(definitions, name+".xml"), []byte(xml), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if opened := e.watch("qemu-img", "convert", "-f", "qcow2", "-O", "raw", filepath.Join(e.images, "backing-absolute"), os.DevNull); len(opened) == 0 {
		t.Fatal("strace does not see what is opened")
	}
	testkit.Tool(t, "imgbackup", "init", "-r", repo)
	var out bytes.Buffer
	if opened := e.watchTo(&out, "imgbackup", "backup", "-r", repo, "--all-domains", definitions, "--json"); len(opened) > 0 {
		t.Errorf("opened outside:\n%s", strings.Join(opened, "\n"))
	}
	var told struct{ Domains []domainOutcome }
	if err := json.Unmarshal(out.Bytes(), &told); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	for _, o := range told.Domains {
		c, ok := all[o.Domain]
		if delete(all, o.Domain); !ok || (o.Status == exitDone) != (c.want == "") || !strings.Contains(o.Error, c.want) {
			t.Errorf("%s: status %d: %s", o.Domain, o.Status, o.Error)
		}
	}
	for name := range all {
		t.Errorf("nothing is said of %s", name)
	}
	const guest = "raw-with-header"
	restored := filepath.Join(dir, "restored.raw")
	testkit.Tool(t, "imgbackup", "restore", "-r", repo, guest, "--to", "vda="+restored)
	got, err := os.ReadFile(restored)
	want, werr := os.ReadFile(filepath.Join(e.images, guest))
	if err := errors.Join(err, werr); err != nil || !bytes.Equal(got, want) {
		t.Errorf("a raw disk with a header is not what the guest wrote: %v", err)
	}
}

func (e *escapes) watch(args ...string) []string { return e.watchTo(new(bytes.Buffer), args...) }

// watchTo runs a program, and returns what it, or what it starts, has opened of what is secret, and whom it
// has connected to.
func (e *escapes) watchTo(out *bytes.Buffer, args ...string) (opened []string) {
	e.Helper()
	logs := e.TempDir()
	// A file for each thread, so that no call is told in two parts; -y tells what a descriptor stands for.
	cmd := exec.Command("strace", append([]string{"-ff", "-y", "-qq", "-o", filepath.Join(logs, "log"), "-s", "4096", "-e", "trace=open,openat,openat2,creat,connect"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil || strings.Contains(stderr.String(), "strace:") {
		e.Fatalf("%v: %s", err, stderr.String())
	}
	paths, err := filepath.Glob(filepath.Join(logs, "log.*"))
	if err != nil || len(paths) == 0 {
		e.Fatal(paths, err)
	}
	outside := regexp.MustCompile(`= \d+<(` + regexp.QuoteMeta(e.secret) + `|/dev/(loop|mapper|dm)|/proc/\d+/mem|/etc/passwd)|AF_INET|` + regexp.QuoteMeta(e.secret) + `/socket`)
	lines := 0
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			e.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if lines++; outside.MatchString(line) {
				opened = append(opened, strings.TrimSpace(line))
			}
		}
	}
	if lines < 10 {
		e.Fatalf("strace has seen %d calls: %s", lines, stderr.String())
	}
	return opened
}
