// SPDX-License-Identifier: Apache-2.0

package qcow2_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/qcow2"
)

// What qemu-img makes is known again, by its first bytes alone.
func TestResemble(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for what, c := range map[string]struct {
		args []string
		want qcow2.Likeness
	}{
		"qcow2":     {[]string{"-f", "qcow2"}, qcow2.Likeness{Format: "qcow2"}},
		"version 2": {[]string{"-f", "qcow2", "-o", "compat=0.10"}, qcow2.Likeness{Format: "qcow2"}},
		"data file": {[]string{"-f", "qcow2", "-o", "data_file=" + filepath.Join(dir, "data")}, qcow2.Likeness{Format: "qcow2", DataFile: true}},
		"vmdk":      {[]string{"-f", "vmdk"}, qcow2.Likeness{Format: "vmdk"}},
		"vhdx":      {[]string{"-f", "vhdx"}, qcow2.Likeness{Format: "vhdx"}},
		"vdi":       {[]string{"-f", "vdi"}, qcow2.Likeness{Format: "vdi"}},
		"qed":       {[]string{"-f", "qed"}, qcow2.Likeness{Format: "qed"}},
		"raw":       {[]string{"-f", "raw"}, qcow2.Likeness{}},
	} {
		path := filepath.Join(dir, what)
		testkit.Tool(t, "qemu-img", append(append([]string{"create", "-q"}, c.args...), path, "1M")...)
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := qcow2.Resemble(f); err != nil || got != c.want {
			t.Errorf("%s: %+v, %v, want %+v", what, got, err, c.want)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	path := filepath.Join(dir, "qcow2")
	testkit.Tool(t, "qemu-img", "snapshot", "-c", "one", path)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := qcow2.Resemble(bytes.NewReader(data)); err != nil || got.Snapshots != 1 {
		t.Errorf("with a snapshot: %+v, %v", got, err)
	}
	data[35] = 2 // crypt_method: LUKS
	if got, err := qcow2.Resemble(bytes.NewReader(data)); err != nil || !got.Encrypted {
		t.Errorf("encrypted: %+v, %v", got, err)
	}
	if got, err := qcow2.Resemble(bytes.NewReader([]byte("LUKS\xba\xbe\x00\x01"))); err != nil || got.Format != "luks" {
		t.Errorf("LUKS: %+v, %v", got, err)
	}
	for n := range 128 {
		if _, err := qcow2.Resemble(bytes.NewReader(data[:n])); err != nil {
			t.Errorf("of %d bytes: %v", n, err)
		}
	}
}
