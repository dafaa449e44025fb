// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

// overlay makes a small image in dir with a backing file's name as given.
func overlay(t *testing.T, path, backing, format string) {
	t.Helper()
	args := []string{"create", "-q", "-f", "qcow2", "-u", "-b", backing}
	if format != "" {
		args = append(args, "-F", format)
	}
	testkit.Tool(t, "qemu-img", append(args, path, "1M")...)
}

func writeFile(t *testing.T, path string, size int) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
}

func symlink(t *testing.T, to, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(to, path); err != nil {
		t.Fatal(err)
	}
}

// setBacking writes a backing file's name that qemu-img would not take.
func setBacking(t *testing.T, path, name string) {
	t.Helper()
	off := readUint64(t, path, 8)
	patch(t, path, 16, be32(uint32(len(name))))
	patch(t, path, int64(off), []byte(name))
}

func TestBackingNamesRefused(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		`json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}`,
		"nbd://127.0.0.1/x", "nbd:unix:/tmp/sock", "ssh://host/path", "file:base.raw", "fat:/tmp", "a:b", ":",
		"nbd:\n\x1b[31m" + strings.Repeat("x", 900),
	} {
		t.Run(fmt.Sprintf("%.10q", name), func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "image.qcow2")
			overlay(t, path, "base.raw", "raw")
			writeFile(t, filepath.Join(filepath.Dir(path), name[strings.IndexByte(name, ':')+1:][:min(8, len(name)-1-strings.IndexByte(name, ':'))]+".raw"), 512)
			setBacking(t, path, name)
			err := openError(t, path, Qcow2, OpenOptions{AllowDirs: []string{"/"}})
			if !isPolicy(err) || !strings.Contains(err.Error(), "not a plain path") {
				t.Fatalf("%T: %v", err, err)
			}
			if strings.ContainsAny(err.Error(), "\n\x1b") || len(err.Error()) > 2000 {
				t.Fatalf("the message is not fit to print: %q", err)
			}
		})
	}
}

func TestBackingFormat(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	base := smallImage(t, dir, "")
	path := filepath.Join(dir, "over.qcow2")
	overlay(t, path, base, "qcow2")
	// An image without a recorded format, as old versions of QEMU made them:
	// the extension becomes one of an unknown type.
	if got := readUint64(t, path, 112) >> 32; uint32(got) != extBackingFormat {
		t.Fatalf("the first extension is %#x", got)
	}
	patch(t, path, 112, be32(0x11111111))
	if err := openError(t, path, Qcow2, OpenOptions{}); !isPolicy(err) || !strings.Contains(err.Error(), "qemu-img rebase -u") {
		t.Error(err)
	}
	overlay(t, path, base, "vmdk")
	if err := openError(t, path, Qcow2, OpenOptions{}); !isUnsupported(err) || !strings.Contains(err.Error(), "vmdk") {
		t.Error(err)
	}
	overlay(t, path, base, "raw") // a qcow2 file that is declared raw is raw
	if c := mustOpen(t, path, Qcow2); c.Layers[1].Header != nil || c.Layers[1].Format != Raw {
		t.Error("the format was probed")
	}
	raw := filepath.Join(dir, "raw")
	writeFile(t, raw, 4096)
	overlay(t, path, raw, "qcow2")
	if err := openError(t, path, Qcow2, OpenOptions{}); !errors.Is(err, ErrNotQcow2) {
		t.Error(err)
	}
}

func TestBackingFolders(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		prepare func(t *testing.T, dir string) (image string, allow []string)
		refused bool
	}{
		{"beside", func(t *testing.T, dir string) (string, []string) {
			writeFile(t, dir+"/vm/base", 512)
			overlay(t, dir+"/vm/image", "base", "raw")
			return dir + "/vm/image", nil
		}, false},
		{"below", func(t *testing.T, dir string) (string, []string) {
			writeFile(t, dir+"/vm/sub/sub/base", 512)
			overlay(t, dir+"/vm/image", "sub/sub/base", "raw")
			return dir + "/vm/image", nil
		}, false},
		{"above", func(t *testing.T, dir string) (string, []string) {
			writeFile(t, dir+"/base", 512)
			os.Mkdir(dir+"/vm", 0o700)
			overlay(t, dir+"/vm/image", "../base", "raw")
			return dir + "/vm/image", nil
		}, true},
		{"absolute", func(t *testing.T, dir string) (string, []string) {
			os.Mkdir(dir+"/vm", 0o700)
			overlay(t, dir+"/vm/image", "/etc/passwd", "raw")
			return dir + "/vm/image", nil
		}, true},
		{"folder with the same beginning", func(t *testing.T, dir string) (string, []string) {
			writeFile(t, dir+"/vm2/base", 512)
			os.Mkdir(dir+"/vm", 0o700)
			overlay(t, dir+"/vm/image", "../vm2/base", "raw")
			return dir + "/vm/image", []string{dir + "/v"}
		}, true},
		{"allowed", func(t *testing.T, dir string) (string, []string) {
			writeFile(t, dir+"/bases/deep/base", 512)
			os.Mkdir(dir+"/vm", 0o700)
			overlay(t, dir+"/vm/image", dir+"/bases/deep/base", "raw")
			return dir + "/vm/image", []string{dir + "/none", dir + "/bases"}
		}, false},
		{"allowed through a symlink", func(t *testing.T, dir string) (string, []string) {
			writeFile(t, dir+"/bases/base", 512)
			symlink(t, dir+"/bases", dir+"/link")
			os.Mkdir(dir+"/vm", 0o700)
			overlay(t, dir+"/vm/image", dir+"/bases/base", "raw")
			return dir + "/vm/image", []string{dir + "/link"}
		}, false},
		{"symlink escapes", func(t *testing.T, dir string) (string, []string) {
			writeFile(t, dir+"/secret", 512)
			symlink(t, "../secret", dir+"/vm/base")
			overlay(t, dir+"/vm/image", "base", "raw")
			return dir + "/vm/image", nil
		}, true},
		{"folder's symlink escapes", func(t *testing.T, dir string) (string, []string) {
			writeFile(t, dir+"/out/base", 512)
			symlink(t, dir+"/out", dir+"/vm/sub")
			overlay(t, dir+"/vm/image", "sub/base", "raw")
			return dir + "/vm/image", nil
		}, true},
		{"symlink stays inside", func(t *testing.T, dir string) (string, []string) {
			writeFile(t, dir+"/vm/real", 512)
			symlink(t, "real", dir+"/vm/base")
			overlay(t, dir+"/vm/image", "base", "raw")
			return dir + "/vm/image", nil
		}, false},
		{"image is a symlink", func(t *testing.T, dir string) (string, []string) {
			writeFile(t, dir+"/pool/base", 512)
			overlay(t, dir+"/pool/image", dir+"/pool/base", "raw")
			symlink(t, dir+"/pool/image", dir+"/vm/link")
			return dir + "/vm/link", nil
		}, false},
		{"relative to the symlink, as QEMU has it", func(t *testing.T, dir string) (string, []string) {
			writeFile(t, dir+"/vm/base", 512)
			writeFile(t, dir+"/pool/empty", 0)
			overlay(t, dir+"/pool/image", "base", "raw")
			symlink(t, dir+"/pool/image", dir+"/vm/link")
			return dir + "/vm/link", nil
		}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			path, allow := test.prepare(t, t.TempDir())
			if test.refused {
				if err := openError(t, path, Qcow2, OpenOptions{AllowDirs: allow}); !isPolicy(err) || !strings.Contains(err.Error(), "outside") {
					t.Fatalf("%T: %v", err, err)
				}
				return
			}
			c, err := Open(path, Qcow2, OpenOptions{AllowDirs: allow})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if len(c.Layers) != 2 || c.Layers[0].BackingPath != c.Layers[1].Path || c.Layers[0].BackingFormat != Raw {
				t.Fatalf("%+v", c.Layers[0])
			}
		})
	}
}

func TestDevicesAreNoImageFolder(t *testing.T) {
	t.Parallel()
	p, err := newPolicy("/dev/null", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.resolve("/dev/null", "zero", "backing file"); !isPolicy(err) {
		t.Fatal(err)
	}
	if p, err = newPolicy("/dev/null", []string{"/dev"}); err != nil {
		t.Fatal(err)
	}
	if got, err := p.resolve("/dev/null", "zero", "backing file"); err != nil || got.resolved != "/dev/zero" {
		t.Fatal(got, err)
	}
}

func TestLoops(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	overlay(t, dir+"/self", "self", "qcow2")
	overlay(t, dir+"/a", "b", "qcow2")
	overlay(t, dir+"/b", "c", "qcow2")
	if err := os.Link(dir+"/a", dir+"/c"); err != nil { // the same file by another name
		t.Fatal(err)
	}
	for _, name := range []string{"self", "a", "b"} {
		if err := openError(t, filepath.Join(dir, name), Qcow2, OpenOptions{}); !isPolicy(err) || !strings.Contains(err.Error(), "same file") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestChainTooLong(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writeFile(t, dir+"/0", 512)
	overlay(t, dir+"/1", "0000", "qcow2")
	template, err := os.ReadFile(dir + "/1")
	if err != nil {
		t.Fatal(err)
	}
	write := func(i int, name string) {
		path := fmt.Sprintf("%s/%04d", dir, i)
		if err := os.WriteFile(path, template, 0o600); err != nil {
			t.Fatal(err)
		}
		setBacking(t, path, name)
	}
	for i := range 210 {
		write(i, fmt.Sprintf("%04d", i+1))
	}
	if err := openError(t, dir+"/0000", Qcow2, OpenOptions{}); !isPolicy(err) || !strings.Contains(err.Error(), "more than 200") {
		t.Fatal(err)
	}
	write(199, "")
	if c := mustOpen(t, dir+"/0000", Qcow2); len(c.Layers) != 200 {
		t.Fatal(len(c.Layers))
	}
}

func TestDataFilePolicy(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	os.Mkdir(dir+"/vm", 0o700)
	path := dir + "/vm/image"
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+dir+"/data", path, "1M")
	if err := openError(t, path, Qcow2, OpenOptions{}); !isPolicy(err) || !strings.Contains(err.Error(), "data file") {
		t.Fatal(err)
	}
	c, err := Open(path, Qcow2, OpenOptions{AllowDirs: []string{dir}})
	if err != nil {
		t.Fatal(err)
	}
	if l := c.Layers[0]; l.DataFile != dir+"/data" || len(l.Files()) != 2 || l.Files()[1].Path() != dir+"/data" {
		t.Fatalf("%+v", l)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	// The image as its own data file.
	self := dir + "/vm/selfie"
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+dir+"/vm/datafi", self, "1M")
	if err := os.Remove(dir + "/vm/datafi"); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(self, dir+"/vm/datafi"); err != nil {
		t.Fatal(err)
	}
	if err := openError(t, self, Qcow2, OpenOptions{}); !isPolicy(err) || !strings.Contains(err.Error(), "same file") {
		t.Fatal(err)
	}
}
