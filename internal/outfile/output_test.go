// SPDX-License-Identifier: Apache-2.0

package outfile

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/imgbackup/imgbackup/qcow2"
)

func openTestOutput(t rapid.TB, sys *System, p *Place, size int64) *Output {
	t.Helper()
	out, err := Open(context.Background(), sys, p, Spec{Size: size})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Whatever is written, and however it is cut, the file reads as it should, and
// no write begins or ends with an aligned block of zeros.
func TestOutputSparseWrites(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		const size = 64 << 10
		sys := Linux()
		plain := sys.Pwrite
		sys.Pwrite = func(f *os.File, p []byte, off int64) (int, error) {
			for pos := off &^ (sparseBlock - 1); pos < off+int64(len(p)); pos += sparseBlock {
				from, to := max(pos, off)-off, min(pos+sparseBlock, off+int64(len(p)))-off
				if len(bytes.Trim(p[from:to], "\x00")) == 0 {
					t.Fatalf("zeros are written at %d (%d bytes)", off+from, to-from)
				}
			}
			return plain(f, p, off)
		}
		out := openTestOutput(t, sys, &Place{Format: qcow2.Raw, Path: filepath.Join(dir, "x")}, size)
		defer func() { _ = out.Discard() }()
		model := make([]byte, size)
		for range rapid.IntRange(0, 6).Draw(t, "pieces of data") {
			from := rapid.IntRange(0, size-1).Draw(t, "from")
			to := rapid.IntRange(from+1, min(size, from+9000)).Draw(t, "to")
			for i := from; i < to; i++ {
				model[i] = byte(i)
			}
		}
		for pos := 0; pos < size; {
			n := rapid.IntRange(1, size-pos).Draw(t, "length of a write")
			if err := out.Write(model[pos:pos+n], int64(pos)); err != nil {
				t.Fatal(err)
			}
			pos += n
		}
		got, err := os.ReadFile(out.NowAt())
		if err != nil || !bytes.Equal(got, model) {
			t.Fatalf("the file differs (%v)", err)
		}
	})
}

// On a device everything is written, and zeros are written over what was there.
func TestOutputDeviceZeros(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, supported := range []bool{true, false} {
		rapid.Check(t, func(t *rapid.T) {
			const size = 64 << 10
			sys := Linux()
			sys.OpenDevice = func(path string) (*os.File, error) { return os.OpenFile(path, os.O_RDWR, 0) }
			zeroed := int64(0)
			zero := sys.ZeroOut
			sys.ZeroOut = func(f *os.File, off, n int64) error {
				if off%zeroAlign != 0 || n%zeroAlign != 0 {
					t.Fatalf("zeros at %d, %d bytes", off, n)
				}
				if !supported {
					return unix.EOPNOTSUPP
				}
				zeroed += n
				return zero(f, off, n)
			}
			path := filepath.Join(dir, "dev")
			model := bytes.Repeat([]byte{0xaa}, size)
			if err := os.WriteFile(path, model, 0o600); err != nil {
				t.Fatal(err)
			}
			out := openTestOutput(t, sys, &Place{Format: qcow2.Raw, Path: path, Device: true}, size)
			defer func() { _ = out.Discard() }()
			from := rapid.IntRange(0, size).Draw(t, "from")
			to := rapid.IntRange(from, size).Draw(t, "to")
			if err := out.Zero(context.Background(), int64(from), int64(to)); err != nil {
				t.Fatal(err)
			}
			if supported && to-from > 2*zeroAlign && zeroed == 0 {
				t.Fatal("the device's own way was not used")
			}
			clear(model[from:to])
			got, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(got, model) {
				t.Fatalf("after zeroing %d..%d the device differs (%v)", from, to, err)
			}
		})
	}
}

func TestOutputDeviceTooSmall(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "dev")
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	sys := Linux()
	sys.OpenDevice = func(path string) (*os.File, error) { return os.OpenFile(path, os.O_RDWR, 0) }
	p := &Place{Format: qcow2.Raw, Path: path, Device: true}
	if out, err := Open(context.Background(), sys, p, Spec{Size: 4608}); err == nil {
		_ = out.Discard()
		t.Error("a device that is too small is taken")
	}
}
