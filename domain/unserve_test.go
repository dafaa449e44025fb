// SPDX-License-Identifier: Apache-2.0

package domain_test

import (
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/domain"
)

const unserveSocket = "/r/sock"

// What somebody has changed in a definition with served disks stays when these are pointed to their files; the
// disks are as they were to be, and nothing is left of how they were served.
func TestUnserve(t *testing.T) {
	t.Parallel()
	const was = `<domain><name>web</name><devices>
  <disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none' io='native'/><source file='/a'><seclabel model='dac' relabel='no'/></source><target dev='vda'/></disk>
  <disk type='file'><source file='/b'/><target dev='vdb'/></disk>
  <disk type='file'><source file='/c'/><target dev='vdc'/></disk>
</devices></domain>`
	files, err := adjust([]byte(was), domain.Moved{Disks: map[string]domain.Image{"vda": {Path: "/r/vda.raw", Format: "raw"}, "vdb": {Path: "/r/vdb.raw", Format: "raw"}}})
	if err != nil {
		t.Fatal(err)
	}
	served, err := adjust([]byte(was), domain.Moved{Disks: map[string]domain.Image{"vda": {Socket: unserveSocket}, "vdb": {Socket: unserveSocket}}})
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.NewReplacer("<name>web</name>", "<name>web</name><!-- mine --><memory>9</memory>",
		"<target dev='vda'/>", "<target dev='vda'/><boot order='1'/><address type='pci'/>", "/c", "/d").Replace(string(served))
	got, err := domain.Unserve([]byte(changed), files, unserveSocket)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"<!-- mine --><memory>9</memory>", "<boot order='1'/><address type='pci'/>", `file='/d'`, "/r/vda.raw", "/r/vdb.raw", "cache='none'", "io='native'", "seclabel"} {
		if !strings.Contains(string(got), text) {
			t.Errorf("there is no %s in\n%s", text, got)
		}
	}
	for _, text := range []string{"nbd", "network", "error_policy", "sock"} {
		if strings.Contains(string(got), text) {
			t.Errorf("there is %s in\n%s", text, got)
		}
	}
	other := strings.ReplaceAll(string(files), "vdb", "vdx")
	if got, err := domain.Unserve([]byte(changed), []byte(other), unserveSocket); err == nil {
		t.Errorf("a disk whose file nobody knows: %s", got)
	}
	if got, err := domain.Unserve([]byte(changed), served, unserveSocket); err == nil {
		t.Errorf("pointed to what is served: %s", got)
	}
	if got, err := domain.Unserve(files, files, unserveSocket); err != nil || string(got) != string(files) {
		t.Errorf("without a disk that is served: %v\n%s", err, got)
	}
}

// unserved demands that disks of a definition that are served, and then are not, are what they are in files.
func unserved(t *testing.T, data, files []byte, disks map[string]domain.Image) {
	t.Helper()
	moved := domain.Moved{Disks: make(map[string]domain.Image)}
	for target := range disks {
		moved.Disks[target] = domain.Image{Socket: unserveSocket}
	}
	served, err := adjust(data, moved)
	if err != nil {
		return // it says so
	}
	got, err := domain.Unserve(served, files, unserveSocket)
	if err != nil {
		t.Fatalf("%v\n%s", err, served)
	}
	now, err := domain.Parse(got)
	if err != nil {
		t.Fatalf("%v\n%s", err, got)
	}
	for target, im := range disks {
		if disk, ok := now.Disk(target); !ok || disk.Path != im.Path || disk.Format != im.Format || disk.Type != domain.TypeFile || len(disk.Backing) > 0 {
			t.Fatalf("%s is %+v\n%s", target, disk, got)
		}
	}
}
