// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

// smallImage makes an image of 4 MiB with some data, and returns its path.
func smallImage(t rapid.TB, dir, options string) string {
	t.Helper()
	path := filepath.Join(dir, "small.qcow2")
	args := []string{"create", "-q", "-f", "qcow2"}
	if options != "" {
		args = append(args, "-o", options)
	}
	testkit.Tool(t, "qemu-img", append(args, path, "4M")...)
	qemuIO(t, "qcow2", path, "write -P 17 1M 200k")
	return path
}

// patch changes bytes of a file.
func patch(t rapid.TB, path string, off int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
func be64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

func readUint64(t rapid.TB, path string, off int64) uint64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [8]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	return binary.BigEndian.Uint64(b[:])
}

// openError opens a chain that must not open.
func openError(t testing.TB, path string, format Format, o OpenOptions) error {
	t.Helper()
	c, err := Open(path, format, o)
	if err == nil {
		c.Close()
		t.Fatalf("%s was opened", path)
	}
	if c != nil {
		t.Fatal("a chain came with an error")
	}
	return err
}

func isDamage(err error) bool      { return errors.As(err, new(*DamageError)) }
func isUnsupported(err error) bool { return errors.As(err, new(*UnsupportedError)) }
func isPolicy(err error) bool      { return errors.As(err, new(*PolicyError)) }

func TestHostileHeaders(t *testing.T) {
	t.Parallel()
	type change struct {
		off   int64
		bytes []byte
	}
	tests := []struct {
		name    string
		options string
		changes []change
		is      func(error) bool
		says    string
	}{
		{"no magic", "", []change{{0, be32(0)}}, func(err error) bool { return errors.Is(err, ErrNotQcow2) }, "format=raw"},
		{"version 1", "", []change{{4, be32(1)}}, isUnsupported, "version 1"},
		{"version 9", "", []change{{4, be32(9)}}, isUnsupported, "version 9"},
		{"cluster bits 0", "", []change{{20, be32(0)}}, isDamage, "cluster bits"},
		{"cluster bits 8", "", []change{{20, be32(8)}}, isDamage, "cluster bits"},
		{"cluster bits 22", "", []change{{20, be32(22)}}, isDamage, "cluster bits"},
		{"cluster bits 31", "", []change{{20, be32(31)}}, isDamage, "cluster bits"},
		{"cluster bits 62", "", []change{{20, be32(62)}}, isDamage, "cluster bits"},
		{"negative size", "", []change{{24, be64(1<<64 - 1)}}, isDamage, "virtual size"},
		{"size beyond L1", "", []change{{24, be64(1 << 40)}}, isDamage, "needs"},
		{"unknown encryption", "", []change{{32, be32(3)}}, isDamage, "encryption"},
		{"AES", "", []change{{32, be32(1)}}, isUnsupported, "encrypted (AES)"},
		{"LUKS", "", []change{{32, be32(2)}}, isUnsupported, "encrypted (LUKS)"},
		{"L1 of 4 GiB", "", []change{{36, be32(0x20000000)}}, isDamage, "L1 table"},
		{"L1 of 32 GiB", "", []change{{36, be32(0xffffffff)}}, isDamage, "L1 table"},
		{"L1 too small", "", []change{{36, be32(0)}}, isDamage, "L1 table has 0 entries"},
		{"L1 not aligned", "", []change{{40, be64(0x30008)}}, isDamage, "L1 table"},
		{"L1 negative", "", []change{{40, be64(1<<64 - 65536)}}, isDamage, "L1 table"},
		{"L1 beyond the end", "", []change{{40, be64(1 << 40)}}, isDamage, "beyond the end"},
		{"no refcount table", "", []change{{56, be32(0)}}, isDamage, "refcount table"},
		{"refcount table too large", "", []change{{56, be32(0xffffffff)}}, isDamage, "refcount table"},
		{"refcount table not aligned", "", []change{{48, be64(65537)}}, isDamage, "refcount table"},
		{"too many snapshots", "", []change{{60, be32(65537)}}, isDamage, "snapshots"},
		{"snapshots beyond the end", "", []change{{60, be32(65536)}, {64, be64(1 << 20)}}, isDamage, "snapshot table"},
		{"snapshot table not aligned", "", []change{{60, be32(1)}, {64, be64(513)}}, isDamage, "snapshot table"},
		{"snapshots at a negative offset", "", []change{{60, be32(1)}, {64, be64(1 << 63)}}, isDamage, "snapshot table"},
		{"backing name outside", "", []change{{8, be64(65537)}}, isDamage, "backing file's name"},
		{"backing name negative", "", []change{{8, be64(1 << 63)}}, isDamage, "backing file's name"},
		{"backing name too long", "", []change{{8, be64(1024)}, {16, be32(1024)}}, isDamage, "backing file's name"},
		{"backing name over the cluster's end", "", []change{{8, be64(65530)}, {16, be32(7)}}, isDamage, "backing file's name"},
		{"backing name with NUL", "", []change{{8, be64(1024)}, {16, be32(7)}}, isDamage, "NUL"},
		{"unknown feature", "", []change{{72, be64(1 << 63)}}, isUnsupported, "bit 63"},
		{"named feature", "", []change{{72, be64(1 << 9)}, {112, append(append(be32(extFeatureNames), be32(48)...), "\x00\x09frobni\ncation"+strings.Repeat("\x00", 60)...)}}, isUnsupported, `bit 9 ("frobni\ncation")`},
		{"refcount order 7", "", []change{{96, be32(7)}}, isDamage, "refcount order"},
		{"short header", "", []change{{100, be32(96)}}, isDamage, "header is 96 bytes"},
		{"long header", "", []change{{100, be32(65537)}}, isDamage, "header is 65537 bytes"},
		{"huge header", "", []change{{100, be32(0xfffffff8)}}, isDamage, "header is"},
		{"compression without its bit", "", []change{{104, []byte{1}}}, isDamage, "contradict"},
		{"compression bit without compression", "", []change{{72, be64(IncompatCompression)}}, isDamage, "contradict"},
		{"unknown compression", "", []change{{72, be64(IncompatCompression)}, {104, []byte{2}}}, isUnsupported, "compression type 2"},
		{"subclusters in small clusters", "cluster_size=4096", []change{{72, be64(IncompatExtendedL2)}}, isDamage, "subclusters"},
		{"data file without a name", "", []change{{72, be64(IncompatDataFile)}}, isDamage, "name is not recorded"},
		{"raw data file without data file", "", []change{{88, be64(AutoclearDataRaw)}}, isDamage, "no such file"},
		{"extension too long", "", []change{{112, append(be32(77), be32(65536)...)}}, isDamage, "extension"},
		{"extension of 4 GiB", "", []change{{112, append(be32(77), be32(0xffffffff)...)}}, isDamage, "extension"},
		{"backing format too long", "", []change{{112, append(be32(extBackingFormat), be32(16)...)}}, isDamage, "format"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			path := smallImage(t, t.TempDir(), test.options)
			for _, c := range test.changes {
				patch(t, path, c.off, c.bytes)
			}
			err := openError(t, path, Qcow2, OpenOptions{})
			if !test.is(err) || !strings.Contains(err.Error(), test.says) {
				t.Fatalf("error is %T: %v", err, err)
			}
		})
	}
}

// TestTolerated opens what looks odd, but is in order.
func TestTolerated(t *testing.T) {
	t.Parallel()
	t.Run("dirty and corrupt", func(t *testing.T) {
		t.Parallel()
		path := smallImage(t, t.TempDir(), "")
		patch(t, path, 72, be64(IncompatDirty|IncompatCorrupt))
		if h := mustOpen(t, path, Qcow2).Layers[0].Header; !h.Has(IncompatDirty) || !h.Has(IncompatCorrupt) {
			t.Fatalf("%+v", h)
		}
	})
	t.Run("unknown extension", func(t *testing.T) {
		t.Parallel()
		path := smallImage(t, t.TempDir(), "")
		patch(t, path, 112, append(append(be32(0x12345678), be32(3)...), "abc\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"...))
		e := mustOpen(t, path, Qcow2).Layers[0].Header.Extension(0x12345678)
		if e == nil || string(e.Data) != "abc" || e.Offset != 120 {
			t.Fatalf("%+v", e)
		}
	})
	t.Run("size 0", func(t *testing.T) {
		t.Parallel()
		for _, cleared := range []bool{false, true} {
			path := filepath.Join(t.TempDir(), "empty.qcow2")
			testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", path, "0")
			if cleared {
				patch(t, path, 36, make([]byte, 12))
			}
			c := mustOpen(t, path, Qcow2)
			if c.Size() != 0 {
				t.Fatal(c.Size())
			}
			for e, err := range c.Extents(0, 0) {
				t.Fatal(e, err)
			}
			if runs, err := c.Allocated(t.Context(), 0).Collect(); len(runs) != 0 || err != nil {
				t.Fatal(runs, err)
			}
		}
	})
	t.Run("size is not a whole number of sectors", func(t *testing.T) {
		t.Parallel()
		path := smallImage(t, t.TempDir(), "")
		patch(t, path, 24, be64(4<<20-1))
		if c := mustOpen(t, path, Qcow2); c.Size() != 4<<20-512 || c.Layers[0].Header.RawSize != 4<<20-1 {
			t.Fatal(c.Size())
		}
	})
	t.Run("extension in version 2", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		smallImage(t, dir, "")
		over := filepath.Join(dir, "over.qcow2")
		testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", "-b", "small.qcow2", "-F", "qcow2", over)
		c := mustOpen(t, over, Qcow2)
		if h := c.Layers[0].Header; h.Version != 2 || h.BackingFormat != "qcow2" || len(c.Layers) != 2 {
			t.Fatalf("%+v", h)
		}
	})
}

// tables returns where an image's first L2 table is, and where the L1 entry.
func tables(t rapid.TB, path string) (l1, l2 int64) {
	t.Helper()
	l1 = int64(readUint64(t, path, 40))
	return l1, int64(readUint64(t, path, l1) & entryOffset)
}

// TestDamagedTables reads images whose tables are wrong: each must fail, and
// never read as zeros.
func TestDamagedTables(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		options string
		damage  func(t *testing.T, path string, l1, l2 int64)
		says    string
	}{
		{"L2 table beyond the end", "", func(t *testing.T, path string, l1, l2 int64) {
			patch(t, path, l1, be64(1<<40|entryCopied))
		}, "beyond the end"},
		{"L2 table not aligned", "", func(t *testing.T, path string, l1, l2 int64) {
			patch(t, path, l1, be64(uint64(l2+512)))
		}, "beginning of a cluster"},
		{"data not aligned", "", func(t *testing.T, path string, l1, l2 int64) {
			patch(t, path, l2+16*8, be64(0x50200))
		}, "beginning of a cluster"},
		{"data beyond the end", "", func(t *testing.T, path string, l1, l2 int64) {
			patch(t, path, l2+16*8, be64(1<<40))
		}, "beyond the end"},
		{"zero cluster in version 2", "compat=0.10", func(t *testing.T, path string, l1, l2 int64) {
			patch(t, path, l2+16*8, be64(entryZero))
		}, "version 2"},
		{"compressed beyond the end", "", func(t *testing.T, path string, l1, l2 int64) {
			patch(t, path, l2+16*8, be64(entryCompressed|1<<40))
		}, "beyond the end"},
		{"compressed garbage", "", func(t *testing.T, path string, l1, l2 int64) {
			patch(t, path, l2+16*8, be64(entryCompressed|0x50000))
		}, "cannot be decompressed"},
		{"compressed zstd garbage", "compression_type=zstd", func(t *testing.T, path string, l1, l2 int64) {
			patch(t, path, l2+16*8, be64(entryCompressed|0x50000))
		}, "cannot be decompressed"},
		{"subclusters allocated and zero", "extended_l2=on", func(t *testing.T, path string, l1, l2 int64) {
			patch(t, path, l2+16*16+8, be64(1<<32|1))
		}, "both"},
		{"subclusters without cluster", "extended_l2=on", func(t *testing.T, path string, l1, l2 int64) {
			patch(t, path, l2+16*16, be64(0))
		}, "not allocated"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			path := smallImage(t, t.TempDir(), test.options)
			l1, l2 := tables(t, path)
			test.damage(t, path, l1, l2)
			c := mustOpen(t, path, Qcow2)
			err := c.ReadAt(t.Context(), make([]byte, 4<<20), 0)
			if !isDamage(err) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("read: %v", err)
			}
			if strings.HasPrefix(test.name, "compressed") && test.says != "beyond the end" {
				return // seen only when it is decompressed
			}
			if _, err := c.Allocated(t.Context(), 0).Bytes(); !isDamage(err) {
				t.Errorf("extents: %v", err)
			}
			// Damage elsewhere does not matter.
			if !strings.HasPrefix(test.name, "L2 table") {
				if err := c.ReadAt(t.Context(), make([]byte, 512), 2<<20); err != nil {
					t.Errorf("read elsewhere: %v", err)
				}
			}
		})
	}
}

// TestRepeatedL2 refuses a small file that says to map more than it can hold.
func TestRepeatedL2(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "bomb.qcow2")
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, "64M")
	qemuIO(t, "qcow2", path, "write 0 4k")
	l1, l2 := tables(t, path)
	for i := range int64(2048) {
		patch(t, path, l1+i*8, be64(uint64(l2)))
	}
	if err := openError(t, path, Qcow2, OpenOptions{}); !isDamage(err) || !strings.Contains(err.Error(), "only") {
		t.Fatal(err)
	}
}

// TestTruncated cuts an image short at every cluster: what opens must either
// read as before or fail.
func TestTruncated(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	source := sourceFile(t, dir)
	path := filepath.Join(dir, "image.qcow2")
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4096", path, "1M")
	qemuIO(t, "qcow2", path, fmt.Sprintf("write -s %s 64k 128k", source))
	for at := 512; at < 600; at += 4 {
		qemuIO(t, "qcow2", path, fmt.Sprintf("write -c -s %s %dk 4k", source, at))
	}
	testkit.Tool(t, "qemu-img", "snapshot", "-c", "one", path)
	qemuIO(t, "qcow2", path, fmt.Sprintf("write -s %s 70k 64k", source))
	o := newOracle(t, path, "qcow2")
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	damaged := 0
	for size := info.Size() - 4096; size >= 0; size -= 4096 {
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		c, err := Open(path, Qcow2, OpenOptions{})
		if err != nil {
			if !isDamage(err) && !errors.Is(err, ErrNotQcow2) {
				t.Fatalf("%d bytes: %v", size, err)
			}
			damaged++
			continue
		}
		got := make([]byte, len(o.content))
		err = c.ReadAt(t.Context(), got, 0)
		_, extErr := c.Allocated(t.Context(), 0).Bytes()
		c.Close()
		switch {
		case err == nil:
			o.same(t, got, 0)
		case !isDamage(err):
			t.Fatalf("%d bytes: %v", size, err)
		default:
			damaged++
			if !isDamage(extErr) && !strings.Contains(err.Error(), "decompressed") {
				t.Fatalf("%d bytes: reading found %v, extents %v", size, err, extErr)
			}
		}
	}
	if damaged < 20 {
		t.Fatalf("only %d sizes were found to be damaged", damaged)
	}
}

// TestShortLastCluster tolerates that a file ends inside its last cluster of
// guest data, as qemu-img check does; the rest reads as zeros.
func TestShortLastCluster(t *testing.T) {
	t.Parallel()
	path := smallImage(t, t.TempDir(), "")
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, info.Size()-5000); err != nil {
		t.Fatal(err)
	}
	newOracle(t, path, "qcow2").checkExtents(t, mustOpen(t, path, Qcow2), 0, 4<<20)
	o := newOracle(t, path, "qcow2")
	got := make([]byte, 4<<20)
	if err := mustOpen(t, path, Qcow2).ReadAt(t.Context(), got, 0); err != nil {
		t.Fatal(err)
	}
	o.same(t, got, 0)
}

func TestFileTypes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(dir, "sock")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: sock}); err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{dir: "directory", fifo: "named pipe", sock: "socket", "/dev/null": "character device"} {
		if err := openError(t, path, Raw, OpenOptions{}); !isPolicy(err) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", path, err)
		}
	}
	over := filepath.Join(dir, "over.qcow2")
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "fifo", "-F", "raw", over, "1M")
	if err := openError(t, over, Qcow2, OpenOptions{}); !isPolicy(err) || !strings.Contains(err.Error(), "backing file of "+over) {
		t.Error(err)
	}
	if err := openError(t, filepath.Join(dir, "none"), Raw, OpenOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if err := openError(t, over, "", OpenOptions{}); !isPolicy(err) {
		t.Error(err)
	}
	if err := openError(t, over, "vmdk", OpenOptions{}); !isUnsupported(err) {
		t.Error(err)
	}
}
