// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/recovery"
)

// elsewhere is libvirt's daemon under another name than it usually has.
const elsewhere = "qemu+unix:///system?socket=/run/libvirt/libvirt-sock"

// wholeMachine is a VM with firmware, a TPM, and disks of several kinds.
type wholeMachine struct {
	*recovering
	images map[string][2]string // target → format, and how it is read
}

const luks = "<encryption format='luks'><secret type='passphrase' uuid='99999999-2222-3333-4444-000000000001'/></encryption>"

func newWholeMachine(v *recovering) *wholeMachine {
	m := &wholeMachine{v, map[string][2]string{"vda": {"qcow2", "qcow2"}, "sda": {"raw", "raw"}, "vdb": {"luks", "raw"}, "vdc": {"qcow2", "encrypted"}}}
	path := func(name string) string { return filepath.Join(m.dir, name) }
	m.put(path("key"), "secret")
	m.put(path("secret.xml"), "<secret ephemeral='no' private='no'><uuid>99999999-2222-3333-4444-000000000001</uuid></secret>")
	m.virsh("secret-define", path("secret.xml"))
	m.virsh("secret-set-value", "99999999-2222-3333-4444-000000000001", base64.StdEncoding.EncodeToString([]byte("secret")))
	testkit.Tool(m, "cp", "/usr/share/OVMF/OVMF_VARS_4M.fd", path("vars.fd"))
	disks := ""
	for i, target := range slices.Sorted(maps.Keys(m.images)) {
		format, how := m.images[target][0], m.images[target][1]
		create, open, inner := []string{"create", "-q", "-f", format}, "driver="+format+",file.filename="+path(target), ""
		switch {
		case format == "luks":
			create, open = append(create, "-o", "key-secret=s,iter-time=10"), open+",key-secret=s"
		case how == "encrypted":
			create, open = append(create, "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"), open+",encrypt.format=luks,encrypt.key-secret=s"
		}
		if format == "luks" || how == "encrypted" {
			inner = luks
		}
		secret := "secret,id=s,file=" + path("key")
		testkit.Tool(m, "qemu-img", append(create, "--object", secret, path(target), "4M")...)
		testkit.Tool(m, "qemu-io", "--object", secret, "--image-opts", "-c", fmt.Sprintf("write -P %d 1M 1M", i+1), open)
		driver := map[bool]string{true: "raw", false: format}[format == "luks"]
		disks += fmt.Sprintf("<disk type='file' device='disk'><driver name='qemu' type='%s'/><source file='%s'>%s</source><target dev='%s' bus='%s'/></disk>",
			driver, path(target), inner, target, map[bool]string{true: "sata", false: "virtio"}[target == "sda"])
	}
	m.put(path("web.xml"), fmt.Sprintf(`<domain type='qemu'><name>web</name><uuid>11111111-2222-3333-4444-000000000001</uuid><memory unit='MiB'>64</memory>
<os><type arch='x86_64' machine='q35'>hvm</type><loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader><nvram>%s</nvram></os><features><acpi/></features>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>%s<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm></devices></domain>`, path("vars.fd"), disks))
	return m
}

// backUp runs it, so that its TPM has a state, and backs it up; then it is gone.
func (m *wholeMachine) backUp() {
	m.Helper()
	m.virsh("define", filepath.Join(m.dir, "web.xml"))
	m.virsh("start", "web", "--paused")
	m.virsh("destroy", "web")
	// Nothing is seen of what a firmware that has not run keeps there.
	testkit.Tool(m, "dd", "status=none", "conv=notrunc", "bs=1", "seek=500000", "if="+filepath.Join(m.dir, "key"), "of="+filepath.Join(m.dir, "vars.fd"))
	m.must("init")
	args := []string{"backup", "--domain-xml", filepath.Join(m.dir, "web.xml"), "--checkpoint", "c1"}
	for target, how := range m.images {
		disk := fmt.Sprintf("%s=%s,format=%s", target, filepath.Join(m.dir, target), how[0])
		switch how[1] {
		case "encrypted":
			disk += ",keyfile=" + filepath.Join(m.dir, "key")
		case "raw":
			disk = fmt.Sprintf("%s=%s,format=raw", target, filepath.Join(m.dir, target))
		}
		args = append(args, "--disk", disk)
	}
	m.must(args...)
	m.virsh("undefine", "web", "--keep-nvram", "--keep-tpm")
}

func (m *wholeMachine) state() string {
	return "/var/lib/libvirt/swtpm/11111111-2222-3333-4444-000000000001"
}

// losePower makes what was written to the disks look as if this machine had been switched off since.
func (m *wholeMachine) losePower() {
	m.Helper()
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		m.Fatal(err)
	}
	for target := range m.images {
		path := filepath.Join(m.to, target+".raw.map")
		text, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(text, bytes.TrimSpace(boot)) {
			m.Fatalf("%s names no boot: %v", path, err)
		}
		m.put(path, string(bytes.ReplaceAll(text, boot[:8], []byte("another0"))))
	}
}

// change changes the definition, as users do.
func (m *wholeMachine) change(element string) {
	m.Helper()
	text := m.virsh("dumpxml", "web", "--inactive", "--security-info")
	m.put(filepath.Join(m.dir, "changed.xml"), strings.Replace(text, "<uuid>", fmt.Sprintf("<%s>changed</%s><uuid>", element, element), 1))
	m.virsh("define", filepath.Join(m.dir, "changed.xml"))
}

// A VM with firmware, a TPM and encrypted disks comes back with all of it, in the libvirt that its recovery was begun with. It
// needs to be root.
func TestLibvirtRecoverMachine(t *testing.T) {
	t.Parallel()
	if !testkit.OwnMachine(t, "/run", "/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt") {
		return
	}
	startLibvirtd(t)
	l := &libvirt{T: t, dir: t.TempDir(), name: "web"}
	m := newWholeMachine(&recovering{libvirt: l, to: filepath.Join(l.dir, "to")})
	m.backUp()
	tpm := filepath.Join(m.state(), "tpm2/tpm2-00.permall")
	state := l.sum(tpm)

	// The state of another TPM is not touched, nor anything else.
	l.put(tpm, "another")
	r := m.begin("")
	r.ends(exitFailed)
	if _, err := os.Stat(m.to); !strings.Contains(r.stderr.String(), "state of a TPM already") || err == nil || l.virsh("list", "--all", "--name") != "" {
		t.Errorf("another TPM: %s; the folder: %v", r.stderr.String(), err)
	}
	if err := os.RemoveAll(m.state()); err != nil {
		t.Fatal(err)
	}

	m.begin("ready", "--connect", elsewhere).ends(-1)
	if _, err := os.Stat(m.state()); err == nil {
		t.Error("the state of the TPM is in its place, and it is not yet sure that libvirt takes the domain in")
	}
	m.begin("defined", "--connect", elsewhere).ends(-1)
	if l.sum(tpm) != state {
		t.Error("the state of the TPM is another before anything has started")
	}
	m.begin("started").ends(-1) // in the libvirt of the beginning
	if is, err := recovery.ReadRecord(m.to); err != nil || is.Connect != elsewhere {
		t.Errorf("the record: %+v, %v", is, err)
	}
	m.losePower()
	m.begin("reset").ends(-1)
	if state := l.virsh("domstate", "web"); state != "shut off" {
		t.Errorf("it is reset, and %s", state)
	}
	m.change("title")
	m.begin("complete", "--no-start").ends(-1)
	if state := l.virsh("domstate", "web"); state == "shut off" {
		t.Error("who was killed when it had reset the domain leaves it off for ever")
	}
	r = m.begin("", "--connect", "qemu:///session")
	r.ends(exitUsage)
	if !strings.Contains(r.stderr.String(), "give --connect "+elsewhere) {
		t.Errorf("another libvirt: %s", r.stderr.String())
	}
	r = m.begin("closed")
	r.says("complete")
	l.virsh("destroy", "web")
	r.ends(-1)

	// Off, and complete, it is the user's: what is changed in it now stays.
	m.change("description")
	m.begin("").ends(exitDone)
	if text := l.virsh("dumpxml", "web"); !strings.Contains(text, "<title>changed") || !strings.Contains(text, "<description>changed") || strings.Contains(text, "/nbd/sock") || strings.Count(text, "<encryption") != 1 {
		t.Errorf("its definition is\n%s", text)
	}
	m.sound()
	l.virsh("start", "web")
	l.virsh("destroy", "web")
}

// sound: all disks are what was archived.
func (m *wholeMachine) sound() {
	m.Helper()
	for target, how := range m.images {
		file := filepath.Join(m.to, target+".raw")
		if how[1] == "encrypted" {
			testkit.Tool(m, "qemu-img", "compare", "--object", "secret,id=s,file="+filepath.Join(m.dir, "key"), "--image-opts",
				"driver=qcow2,encrypt.format=luks,encrypt.key-secret=s,file.filename="+filepath.Join(m.dir, target), "driver=raw,file.filename="+file)
			continue
		}
		testkit.Tool(m, "qemu-img", "compare", "-f", how[1], "-F", "raw", filepath.Join(m.dir, target), file)
	}
}
