// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// docSection is a section of a page, and the lines of it that are commands.
type docSection struct {
	title string
	lines []string
}

// docSections are those of a page that have commands.
func docSections(t *testing.T, path string) (all []docSection) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	now := docSection{}
	end := func() {
		if len(now.lines) > 0 {
			all = append(all, now)
		}
	}
	for _, line := range strings.Split(string(text), "\n") {
		if title, ok := strings.CutPrefix(line, "#"); ok {
			end()
			now = docSection{title: strings.TrimLeft(title, "# ")}
		}
		if command, ok := strings.CutPrefix(line, "    "); ok {
			now.lines = append(now.lines, command)
		}
	}
	end()
	return all
}

// disaster is a host that is gone, and another one.
type disaster struct {
	*libvirt
	server   *s3test.Server
	secret   bool
	vms      map[string]disasterVM
	env      []string          // of the old host
	want     map[string]digest // disk → content
	replaced map[string]string // what the page says → what it is here
	used     map[string]bool
}

// disasterVM is a VM of the old host.
type disasterVM struct {
	disks map[string]string // target → format
	uefi  bool
	tpm   bool
}

// disasterVMs are those of one whose repository is encrypted, or not.
func disasterVMs(secret bool) map[string]disasterVM {
	all := map[string]disasterVM{"the third": {disks: map[string]string{"vda": "qcow2"}}}
	if secret {
		all["web"] = disasterVM{disks: map[string]string{"vda": "qcow2", "vdb": "raw"}, uefi: true}
		all["mail"] = disasterVM{disks: map[string]string{"vda": "qcow2"}, tpm: true}
	}
	return all
}

// TestDisaster runs each line of docs/disaster.md. It needs to be root.
func TestDisaster(t *testing.T) {
	t.Parallel()
	if !testkit.OwnMachine(t, "/run", "/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt") {
		return
	}
	startLibvirtd(t)
	server := s3test.Start(t, s3test.MinIO)
	for _, secret := range []bool{true, false} {
		d := &disaster{libvirt: &libvirt{T: t, dir: t.TempDir()}, server: server, secret: secret, vms: disasterVMs(secret), want: make(map[string]digest), used: make(map[string]bool)}
		d.replaced = map[string]string{
			"apt-get install --yes":          "apt-get --simulate --quiet=2 install",
			"https://minio.example.org:9000": server.Endpoint,
			"AWS_ACCESS_KEY_ID=KEY":          "AWS_ACCESS_KEY_ID=" + s3test.AccessKey,
			"AWS_SECRET_ACCESS_KEY=SECRET":   "AWS_SECRET_ACCESS_KEY=" + s3test.SecretKey + " AWS_REGION=" + s3test.Region,
			"s3://vm-backups/site1":          "s3://" + server.Bucket() + "/site1",
			"/srv/backup":                    filepath.Join(d.dir, "old", "repo"),
			"/vm ":                           filepath.Join(d.dir, "vm") + " ",
			"/etc/imgbackup/":                d.dir + "/",
		}
		identity := d.oldHost()
		d.follow(identity)
		d.judge()
	}
}

// program runs imgbackup as the old host does.
func (d *disaster) program(args ...string) string {
	d.Helper()
	cmd := exec.Command("imgbackup", args...)
	cmd.Env = append(os.Environ(), d.env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		d.Fatalf("imgbackup %q: %v\n%s", args, err, out)
	}
	return string(out)
}

// oldHost makes VMs and backs them up, and is gone. The identity is that of the kit's pages.
func (d *disaster) oldHost() (identity string) {
	old := filepath.Join(d.dir, "old")
	definitions := filepath.Join(old, "defs")
	if err := os.MkdirAll(definitions, 0o755); err != nil {
		d.Fatal(err)
	}
	repo := filepath.Join(old, "repo")
	if d.secret {
		repo = d.replaced["s3://vm-backups/site1"]
	}
	d.env = append(d.server.Env(), "IMGBACKUP_REPO="+repo)
	if d.secret {
		admin, host := filepath.Join(old, "admin.key"), filepath.Join(old, "host.key")
		d.program("init", "--encrypt", "--out", admin)
		d.env = append(d.env, "IMGBACKUP_IDENTITY="+admin)
		d.program("key", "add", "oldhost", "--role", "host", "--out", host)
		kit := d.program("key", "kit", "--text", "--with-identity", "--identity", admin)
		if identity = regexp.MustCompile(`AGE-SECRET-KEY-\S+`).FindString(kit); identity == "" {
			d.Fatalf("the kit has no identity:\n%s", kit)
		}
		d.env = append(d.env, "IMGBACKUP_IDENTITY="+host)
	} else {
		d.program("init")
	}
	number := 0
	for name, vm := range d.vms {
		number++
		d.put(filepath.Join(definitions, name+".xml"), d.machine(old, name, number, vm))
	}
	if err := os.Mkdir(filepath.Join(definitions, "autostart"), 0o755); err != nil {
		d.Fatal(err)
	}
	if err := os.Symlink("../mail.xml", filepath.Join(definitions, "autostart", "mail.xml")); err != nil {
		d.Fatal(err)
	}
	if said := d.program("backup", "--all-domains", definitions, "--checkpoint", "last"); !strings.Contains(said, fmt.Sprintf("%d done", len(d.vms))) {
		d.Fatalf("%s", said)
	}
	if d.secret { // else the repository lies there
		if err := os.RemoveAll(old); err != nil {
			d.Fatal(err)
		}
	}
	return identity
}

// machine makes the disks of a VM, and returns its definition.
func (d *disaster) machine(dir, name string, number int, vm disasterVM) string {
	d.Helper()
	uuid := fmt.Sprintf("11111111-2222-3333-4444-%012d", number)
	firmware, devices := "", ""
	if vm.uefi {
		vars := filepath.Join(dir, "vars.fd")
		testkit.Tool(d, "cp", "/usr/share/OVMF/OVMF_VARS_4M.fd", vars)
		firmware = "<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader><nvram>" + vars + "</nvram>"
	}
	if vm.tpm {
		devices = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
		d.makeTPM(uuid)
	}
	for _, target := range slices.Sorted(maps.Keys(vm.disks)) {
		format := vm.disks[target]
		image := filepath.Join(dir, name+" "+target)
		testkit.Tool(d, "qemu-img", "create", "-q", "-f", format, image, "2M")
		testkit.Tool(d, "qemu-io", "-f", format, "-c", fmt.Sprintf("write -P %d %dk 200k", 10*number+len(target), 64*number), image)
		raw := filepath.Join(d.dir, "look")
		testkit.Tool(d, "qemu-img", "convert", "-f", format, "-O", "raw", image, raw)
		d.want[name+" "+target] = d.sum(raw)
		devices += fmt.Sprintf("<disk type='file' device='disk'><driver name='qemu' type='%s'/><source file='%s'/><target dev='%s' bus='virtio'/></disk>", format, image, target)
	}
	return fmt.Sprintf(`<domain type='qemu'><name>%s</name><uuid>%s</uuid><memory unit='MiB'>64</memory>
<os><type arch='x86_64' machine='q35'>hvm</type>%s</os><features><acpi/></features>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>%s</devices></domain>`, name, uuid, firmware, devices)
}

// makeTPM has libvirt make the state of a TPM.
func (d *disaster) makeTPM(uuid string) {
	d.Helper()
	path := filepath.Join(d.dir, "maker.xml")
	d.put(path, fmt.Sprintf(`<domain type='qemu'><name>maker</name><uuid>%s</uuid><memory unit='MiB'>16</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm></devices></domain>`, uuid))
	d.virsh("define", path)
	d.virsh("start", "maker", "--paused")
	d.virsh("destroy", "maker")
	state := "/var/lib/libvirt/swtpm/" + uuid
	kept := filepath.Join(d.dir, "tpm")
	testkit.Tool(d, "cp", "-r", state, kept)
	d.virsh("undefine", "maker")
	if err := os.RemoveAll(state); err != nil {
		d.Fatal(err)
	}
	testkit.Tool(d, "mv", kept, state)
	d.want["mail tpm"] = d.sum(state + "/tpm2/tpm2-00.permall")
}

// follow does what the page says.
func (d *disaster) follow(identity string) {
	d.Helper()
	state := filepath.Join(d.dir, "environment")
	d.put(state, "")
	if err := os.RemoveAll("/var/lib/libvirt/swtpm"); err != nil { // the old host's
		d.Fatal(err)
	}
	for _, s := range docSections(d.T, "../../docs/disaster.md") {
		if strings.HasPrefix(s.title, "Encrypted") && !d.secret || strings.HasPrefix(s.title, "Not encrypted") && d.secret {
			continue
		}
		switch {
		// A plain one is recovered, an encrypted one restored.
		case strings.HasPrefix(s.title, "Or all of it at once") && d.secret,
			strings.HasPrefix(s.title, "All of it") && !d.secret,
			strings.HasPrefix(s.title, "Start them") && !d.secret:
			continue
		case strings.HasPrefix(s.title, "The first one"):
			d.running()
		}
		script := fmt.Sprintf("set -euo pipefail\n. '%s'\nset -x\n", state)
		for _, line := range s.lines {
			script += d.here(line) + "\n"
		}
		script += fmt.Sprintf("set +x\nexport -p >'%s'\n", state)
		cmd := exec.Command("bash", "-c", script)
		cmd.Env = append(os.Environ(), "HOME="+d.dir, "LC_ALL=C")
		cmd.Stdin = strings.NewReader(identity + "\n")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err != nil {
			d.Fatalf("%s: %v\n%s", s.title, err, out.String())
		}
		d.log = append(d.log, out.String())
		switch {
		case strings.HasPrefix(s.title, "All of it"):
			d.whole("")
		case strings.HasPrefix(s.title, "Or all of it"):
			d.recovered()
		}
	}
	for what := range d.replaced {
		aboutSecret := what != "/srv/backup" && strings.ContainsAny(what, ":=") || strings.HasPrefix(what, "/etc")
		if !d.used[what] && (d.secret || !aboutSecret) && (!d.secret || what != "/srv/backup") {
			d.Errorf("no line of the page has %q", what)
		}
	}
}

// recovered: all run from the archive, until they are complete and were shut down.
func (d *disaster) recovered() {
	d.Helper()
	said := func() string {
		text, err := os.ReadFile(filepath.Join(d.dir, "recover.log"))
		if err != nil {
			d.Fatal(err)
		}
		return string(text)
	}
	for name := range d.vms {
		d.until(name+" runs and is complete", func() bool {
			if strings.Contains(said(), "could not be") {
				d.Fatal(said())
			}
			return strings.Contains(said(), "running "+name) && strings.Contains(said(), "complete: the definition of "+name)
		})
		d.virsh("destroy", name, "--graceful")
	}
	d.until("the recovery ends", func() bool { return strings.Contains(said(), "recovered, 0 there already, 0 failed") })
	d.whole("raw")
	for name := range d.vms {
		d.virsh("start", name)
	}
}

// here is a line of the page as it is for this host.
func (d *disaster) here(line string) string {
	for what, is := range d.replaced {
		if strings.Contains(line, what) {
			d.used[what] = true
			line = strings.ReplaceAll(line, what, is)
		}
	}
	return line
}

// whole: all that was backed up is there, before anything has written to it. all is the format of all disks; empty: each has
// its own.
func (d *disaster) whole(all string) {
	d.Helper()
	for name, vm := range d.vms {
		for target, format := range vm.disks {
			format = cmp.Or(all, format)
			raw := filepath.Join(d.dir, "look")
			testkit.Tool(d, "qemu-img", "convert", "-f", format, "-O", "raw", filepath.Join(d.dir, "vm", name, target+"."+format), raw)
			if d.sum(raw) != d.want[name+" "+target] {
				d.Errorf("%s: disk %s is another", name, target)
			}
		}
	}
	if starts := d.virsh("list", "--all", "--autostart", "--name"); d.secret && starts != "mail" || !d.secret && starts != "" {
		d.Errorf("%q start with the host", starts)
	}
	states, err := filepath.Glob("/var/lib/libvirt/swtpm/*/tpm2/tpm2-00.permall")
	if err != nil || d.vms["mail"].tpm && len(states) != 1 || len(states) == 1 && d.sum(states[0]) != d.want["mail tpm"] {
		d.Errorf("the TPM's state: %q, %v", states, err)
	}
}

// running: all VMs run, and are shut down.
func (d *disaster) running() {
	d.Helper()
	for name := range d.vms {
		if state := d.virsh("domstate", name); state != "running" {
			d.Errorf("%s is %s\n%s", name, state, strings.Join(d.log, "\n"))
		}
		d.virsh("destroy", name, "--graceful")
	}
}

// judge looks at what the backup of the new host found, and takes its domains out of libvirt again.
func (d *disaster) judge() {
	d.Helper()
	said := d.log[len(d.log)-1]
	how := "incremental since last"
	if !d.secret { // those that were recovered are raw
		how = "incremental by content since last"
	}
	if n := strings.Count(said, how); n != len(d.vms) { // the raw disk of one has no bitmap
		d.Errorf("%d disks went on incrementally:\n%s", n, said)
	}
	if !strings.Contains(said, fmt.Sprintf("%d done, 0 failed", len(d.vms))) {
		d.Errorf("the backup:\n%s", said)
	}
	for name := range d.vms {
		d.virsh("undefine", name, "--nvram")
	}
	if left := processes(d.dir); len(left) > 0 {
		d.Errorf("left behind: %q", left)
	}
}
