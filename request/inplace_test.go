// SPDX-License-Identifier: Apache-2.0

package request_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qemu"
	"github.com/imgbackup/imgbackup/request"
)

// What the script test inplace cannot have: devices, and memory in libvirt's own folder.
func TestInPlace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	put := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	here := chain.Host{Name: "here", ID: "machine:1"}
	m := &chain.Manifest{Domain: "web", Checkpoint: "c1", Host: here, Disks: []chain.Disk{
		{Name: "vda", Size: 1 << 20, Source: chain.Source{Path: "/dev/dm-3", Format: "raw"}},
	}}
	place := func(force bool) (string, []string, error) {
		p := request.InPlace{Host: here, Definitions: dir, Saved: dir, Force: force}
		targets, notes, err := p.Targets(m, nil)
		if err != nil {
			return "", notes, err
		}
		return targets[0].Path, notes, nil
	}
	// The kernel's name for a device is not for ever.
	for _, force := range []bool{false, true} {
		if at, _, err := place(force); err == nil || !strings.Contains(err.Error(), "may be another one by now") {
			t.Errorf("force %v: %q, %v", force, at, err)
		}
	}
	put("web.xml", `<domain><name>web</name><devices><disk type='block'><source dev='/dev/null'/><driver type='raw'/><target dev='vda'/></disk></devices></domain>`)
	if _, _, err := place(false); !errors.Is(err, request.ErrNotInPlace) || !strings.Contains(err.Error(), "/dev/null is a device") {
		t.Errorf("a device: %v", err)
	}
	if at, notes, err := place(true); err != nil || at != "/dev/null" || len(notes) != 1 {
		t.Errorf("a device by force: %q, %q, %v", at, notes, err)
	}
	put("web.save", "")
	var inUse *qemu.InUseError
	if _, _, err := place(true); !errors.As(err, &inUse) {
		t.Errorf("a saved memory: %v", err)
	}
	put("web.xml", "<domain>")
	if err := os.Remove(filepath.Join(dir, "web.save")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := place(true); err == nil || !strings.Contains(err.Error(), filepath.Join(dir, "web.xml")) {
		t.Errorf("a definition that cannot be read: %v", err)
	}
}
