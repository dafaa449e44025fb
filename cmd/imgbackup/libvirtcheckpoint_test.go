// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

// Checkpoints go back and forth between a real libvirtd and us. What libvirt made while
// the VM ran is adopted when it is off, and what was pulled and pushed since reads as the
// disk does then. What we made while it was off libvirt is told of, and its own backups of
// the running VM are incremental since then.
//
// It needs to be root.
func TestLibvirtCheckpoints(t *testing.T) {
	t.Parallel()
	if !testkit.OwnMachine(t, "/run", "/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt") {
		return
	}
	startLibvirtd(t)
	l := &libvirt{T: t, dir: t.TempDir(), name: "vm", random: rand.New(rand.NewPCG(2, 0))}
	l.define()
	l.must("init")

	l.start()
	l.write(2)
	copied := l.theirBackup("", "t1")
	l.write(2)
	second := l.theirBackup("t1", "t2")
	testkit.Tool(t, "qemu-img", "rebase", "-u", "-f", "qcow2", "-b", copied, "-F", "qcow2", second)
	l.write(2)
	l.snapshot() // libvirt begins the bitmaps anew in the overlay
	l.write(2)
	l.stop()
	image := l.virshField("domblklist", 2)

	l.must("checkpoint", "redefine", l.name, "--all-of", "/var/lib/libvirt/qemu/checkpoint/"+l.name, "--domain-xml", l.definition())
	l.pushed(copied, image, "t1")
	p := &puller{TB: t, dir: l.dir, image: image, copy: filepath.Join(l.dir, "copy.raw"), socket: "s"}
	testkit.Tool(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", copied, p.copy)
	p.serve(func(offers map[string]offerJSON) {
		p.alsoDirty(offers["vda"], p.patch(offers["vda"]))
	}, "--incremental", "t1")
	p.upToDate("since libvirt's checkpoint")

	// It goes on, and is adopted once more; what libvirt deletes is noticed.
	l.start()
	l.write(1)
	l.virsh("blockcommit", l.name, "vda", "--active", "--pivot", "--wait")
	l.write(1)
	l.virsh("checkpoint-delete", l.name, "t1")
	l.stop()
	image = l.virshField("domblklist", 2)
	l.must("checkpoint", "redefine", l.name, "--all-of", "/var/lib/libvirt/qemu/checkpoint/"+l.name, "--domain-xml", l.definition())
	l.pushed(second, image, "t2")
	if o := l.imgbackup("changes", l.name, "t1"); o.code != exitNotTrusted || !strings.Contains(o.err, "holds no bitmap t1") {
		t.Errorf("since a checkpoint that libvirt deleted: exit status %d: %s", o.code, o.err)
	}

	// The other way: two of ours, an archive and one without data.
	l.must("backup", "--domain-xml", l.definition(), "--checkpoint", "o1", "--libvirt-names")
	base := l.newImage()
	testkit.Tool(t, "qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", image, base)
	l.start()
	l.write(1)
	l.stop()
	l.must("checkpoint", "create", "--domain-xml", l.definition(), "--checkpoint", "o2", "--libvirt-name")
	l.tell("o1")
	l.tell("o2")
	l.start()
	l.write(2)
	theirs := l.theirBackup("o1", "t3")
	l.write(1)
	later := l.theirBackup("t3", "")
	l.stop()
	testkit.Tool(t, "qemu-img", "rebase", "-u", "-f", "qcow2", "-b", base, "-F", "qcow2", theirs)
	testkit.Tool(t, "qemu-img", "rebase", "-u", "-f", "qcow2", "-b", theirs, "-F", "qcow2", later)
	testkit.Tool(t, "qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", later, image)

	// Ours and theirs side by side: all is adopted that is libvirt's, and ours goes on.
	said := l.must("checkpoint", "redefine", l.name, "--all-of", "/var/lib/libvirt/qemu/checkpoint/"+l.name, "--domain-xml", l.definition())
	if !strings.Contains(said, "checkpoint t3 of vm adopted (after o2)") {
		t.Errorf("adopted: %s", said)
	}
	l.pushed(theirs, image, "t3")
	l.pushed(base, image, "o1")
	if said := l.must("backup", "--domain-xml", l.definition(), "--checkpoint", "o3", "--mode", "incremental", "--libvirt-names"); !strings.Contains(said, "incremental since o1") {
		t.Errorf("after libvirt's own checkpoints: %s", said)
	}
	out := filepath.Join(l.dir, "out")
	l.must("restore", l.name, "o3", "--output", out)
	testkit.Tool(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", filepath.Join(out, "vda.raw"), image)
}

// tell makes libvirt know a checkpoint of ours, by our XML.
func (l *libvirt) tell(checkpoint string) {
	l.Helper()
	path := filepath.Join(l.dir, checkpoint+".xml")
	l.put(path, l.must("checkpoint", "dumpxml", l.name, checkpoint))
	l.virsh("checkpoint-create", l.name, path, "--redefine")
}

// define makes a VM with one disk and a network card.
func (l *libvirt) define() {
	l.Helper()
	image := l.newImage()
	testkit.Tool(l, "qemu-img", "create", "-q", "-f", "qcow2", image, "24M")
	testkit.Guest(l, image, "write -P 99 1M 6M")
	l.put(filepath.Join(l.dir, "first.xml"), fmt.Sprintf(`<domain type='qemu'>
  <name>%s</name>
  <memory unit='MiB'>32</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <seclabel type='none'/>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='%s'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <interface type='user'><mac address='52:54:00:00:00:01'/><model type='virtio'/></interface>
  </devices>
</domain>
`, l.name, image))
	l.virsh("define", filepath.Join(l.dir, "first.xml"))
}

// theirBackup lets libvirt write the disk, or what changed since a checkpoint, to a file,
// and makes a checkpoint of that instant, if it is named.
func (l *libvirt) theirBackup(since, checkpoint string) string {
	l.Helper()
	to := l.newImage()
	todo := filepath.Join(l.dir, "backup.xml")
	incremental := ""
	if since != "" {
		incremental = "<incremental>" + since + "</incremental>"
	}
	l.put(todo, fmt.Sprintf(`<domainbackup>%s<disks><disk name='vda' type='file'><target file='%s'/><driver type='qcow2'/></disk></disks></domainbackup>`, incremental, to))
	args := []string{"backup-begin", l.name, todo}
	if checkpoint != "" {
		point := filepath.Join(l.dir, "checkpoint.xml")
		l.put(point, fmt.Sprintf(`<domaincheckpoint><name>%s</name></domaincheckpoint>`, checkpoint))
		args = append(args, point)
	}
	l.virsh(args...)
	l.until("libvirt's backup ends", func() bool { return strings.Contains(l.virsh("domjobinfo", l.name), "None") })
	return to
}

// pushed pushes what changed since a checkpoint over a copy of the disk at that time, or
// earlier, and compares.
func (l *libvirt) pushed(base, image, since string) {
	l.Helper()
	to := l.newImage()
	l.log = append(l.log, l.must("backup", "--domain-xml", l.definition(), "--target", "vda="+to, "--incremental", since))
	testkit.Tool(l, "qemu-img", "rebase", "-u", "-f", "qcow2", "-b", base, "-F", "qcow2", to)
	testkit.Tool(l, "qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", to, image)
}
