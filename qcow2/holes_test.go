// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/clustermap"
	"github.com/imgbackup/imgbackup/internal/testkit"
)

// TestMappedWithoutHoles turns holes of files into data and back, in every way in which that
// happens without a write to the disk: what the tables say stays as it was.
func TestMappedWithoutHoles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "raw", dir+"/raw", "512k")
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=falloc", dir+"/flat", "1M")
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+dir+"/own,preallocation=falloc", dir+"/split", "1M")
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+dir+"/bare,data_file_raw=on", dir+"/rawsplit", "1M")
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", dir+"/raw", "-F", "raw", dir+"/over", "1M")
	qemuIO(t, "raw", dir+"/raw", "write -P 0 0 512k")
	for _, image := range []string{"flat", "split", "rawsplit", "over"} {
		qemuIO(t, "qcow2", dir+"/"+image, "write -z -u 0 64k", "write -P 0 128k 192k")
	}
	for _, tt := range []struct{ image, file, unmapped string }{
		{"flat", "flat", "[{0 65536}]"},
		{"split", "own", "[{0 65536}]"},
		{"rawsplit", "bare", "[{0 65536}]"},
		{"over", "raw", "[{0 65536} {524288 1048576}]"},
	} {
		t.Run(tt.image, func(t *testing.T) {
			t.Parallel()
			f, err := os.OpenFile(dir+"/"+tt.file, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			seen := make(map[string]bool)
			for _, turn := range []func() error{
				func() error { _, err := os.ReadFile(f.Name()); return err },
				func() error { return unix.Fdatasync(int(f.Fd())) },
				func() error { return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) },
				func() error { return punchData(f, dir+"/"+tt.image) },
				func() error { return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, 1<<20) },
			} {
				if err := turn(); err != nil {
					t.Fatal(err)
				}
				c := mustOpen(t, dir+"/"+tt.image, Qcow2)
				seen[text(t, c.Data)] = true
				if got := text(t, c.Unmapped); got != tt.unmapped {
					t.Errorf("unmapped: %s, want %s", got, tt.unmapped)
				}
				checkMapped(t, c)
			}
			if len(seen) < 2 {
				t.Errorf("no hole has turned: %v", seen)
			}
		})
	}
}

// punchData makes holes of all that an image's tables name in a file, which may be its raw backing
// file.
func punchData(f *os.File, image string) error {
	c, err := Open(image, Qcow2, OpenOptions{})
	if err != nil {
		return err
	}
	defer c.Close()
	const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	if backing := c.Layers[len(c.Layers)-1]; backing.Header == nil {
		return unix.Fallocate(int(f.Fd()), punch, 0, backing.Size)
	}
	for p, err := range c.Places(context.Background(), 0, 0, c.Size()) {
		if err == nil && p.Kind == clustermap.Data {
			err = unix.Fallocate(int(f.Fd()), punch, p.Host, p.Length)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func text(t *testing.T, set func(context.Context) bitmapstore.Runs) string {
	t.Helper()
	s, err := set(t.Context()).Collect()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(s)
}
