// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

// Two domains come back as they were at one instant, however often that is killed; where anything is in the way, or there is too
// little room, nothing is written and nothing that is there is touched. It needs to be root.
func TestLibvirtRecoverAll(t *testing.T) {
	t.Parallel()
	if !testkit.OwnMachine(t, "/run", "/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt") {
		return
	}
	startLibvirtd(t)
	l := &libvirt{T: t, dir: t.TempDir(), name: "--all"}
	v := &recovering{libvirt: l, to: filepath.Join(l.dir, "vm")}
	definitions := filepath.Join(l.dir, "definitions")
	domains := []string{"mail", "web"}
	define := func(name, uuid, image string) string {
		return fmt.Sprintf(`<domain type='qemu'><name>%s</name><uuid>11111111-2222-3333-4444-%012s</uuid><memory unit='MiB'>16</memory><os><type arch='x86_64'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator><disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='%s'/><target dev='vda' bus='virtio'/></disk></devices></domain>`, name, uuid, image)
	}
	image := func(name string) string { return filepath.Join(l.dir, name, "disk") } // of the same name
	if err := os.Mkdir(definitions, 0o755); err != nil {
		t.Fatal(err)
	}
	for i, name := range domains {
		if err := os.Mkdir(filepath.Join(l.dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		testkit.Tool(t, "qemu-img", "create", "-q", "-f", "raw", image(name), "8M")
		testkit.Tool(t, "qemu-io", "-f", "raw", "-c", fmt.Sprintf("write -P %d 1M 4M", i+1), image(name))
		testkit.Tool(t, "cp", image(name), image(name)+".then")
		l.put(filepath.Join(definitions, name+".xml"), define(name, fmt.Sprint(i), image(name)))
	}
	l.must("init")
	l.must("backup", "--all-domains", definitions, "--checkpoint", "then")
	var shown struct{ Created time.Time }
	var instant time.Time
	for _, name := range domains {
		if err := json.Unmarshal([]byte(l.must("show", name, "then", "--json")), &shown); err != nil || shown.Created.IsZero() {
			t.Fatal(shown, err)
		}
		if shown.Created.After(instant) {
			instant = shown.Created
		}
	}
	before := instant.Format(time.RFC3339)
	l.until("that second is over", func() bool { return time.Since(instant.Truncate(time.Second)) > time.Second })
	for _, name := range domains {
		testkit.Tool(t, "qemu-io", "-f", "raw", "-c", "write -P 9 1M 4M", image(name))
	}
	l.must("backup", "--all-domains", definitions, "--checkpoint", "now")

	// refused: nothing is there afterwards that was not there before.
	refused := func(why string) {
		t.Helper()
		was := testkit.Names(t, l.dir)
		r := v.begin("")
		r.ends(exitFailed)
		if said := r.stderr.String(); !strings.Contains(said, why) || strings.Join(testkit.Names(t, l.dir), " ") != strings.Join(was, " ") {
			t.Errorf("want %q: %s", why, said)
		}
	}
	other := filepath.Join(l.dir, "other.xml")
	for _, is := range [][2]string{{"mail", "9"}, {"alien", "1"}} {
		l.put(other, define(is[0], is[1], "/nowhere"))
		l.virsh("define", other)
		refused("libvirt has a domain " + is[0] + " already")
		l.virsh("undefine", is[0])
	}
	small := filepath.Join(l.dir, "small")
	if err := os.Mkdir(small, 0o755); err != nil {
		t.Fatal(err)
	}
	testkit.Mount(t, "none", small, "tmpfs", 0, "size=6M")
	l.put(filepath.Join(small, "mine"), "mine")
	to := v.to
	v.to = filepath.Join(small, "vm")
	refused("are needed")
	v.to = to
	if names := testkit.Names(t, small); len(names) != 1 || l.virsh("list", "--all", "--name") != "" {
		t.Errorf("there is %q, and in libvirt %q", names, l.virsh("list", "--all", "--name"))
	}
	if err := os.MkdirAll(filepath.Join(v.to, "web"), 0o755); err != nil {
		t.Fatal(err)
	}
	l.put(filepath.Join(v.to, "web", "vda.raw"), "mine")
	refused("is there already")
	if text, err := os.ReadFile(filepath.Join(v.to, "web", "vda.raw")); err != nil || string(text) != "mine" {
		t.Errorf("what was there: %q, %v", text, err)
	}
	if err := os.RemoveAll(v.to); err != nil {
		t.Fatal(err)
	}

	for _, step := range []string{"ready", "defining", "started:x", "complete"} { // of the first, and of the second
		v.begin(step, "--before", before).ends(-1)
	}
	r := v.begin("", "--before", "2001-01-01")
	r.ends(exitFailed)
	if !strings.Contains(r.stderr.String(), "at checkpoint then, and it had no checkpoint then") {
		t.Errorf("another instant: %s", r.stderr.String())
	}
	r = v.begin("")
	r.says("complete")
	r.says("complete")
	for _, name := range domains {
		l.virsh("destroy", name)
	}
	r.ends(exitDone)
	r = v.begin("", "--json")
	r.ends(exitDone)
	var out restoredAllJSON
	if err := json.Unmarshal([]byte(r.said), &out); err != nil || out.Stands != 2 || out.Domains[0].Checkpoint != "then" {
		t.Errorf("when all is there: %+v, %v", out, err)
	}
	for _, name := range domains {
		if n := testkit.Differ(t, filepath.Join(v.to, name, "vda.raw"), image(name)+".then"); n >= 0 {
			t.Errorf("%s differs at byte %d", name, n)
		}
	}
}
