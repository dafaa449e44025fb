// SPDX-License-Identifier: Apache-2.0

package domain_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/domain"
)

const original = `<domain type='kvm'>
  <name>web</name>
  <uuid>11111111-2222-3333-4444-555555555555</uuid>
  <genid>11111111-2222-3333-4444-555555555556</genid>
  <sysinfo type='smbios'><system><entry name='serial'>S1</entry><entry name='uuid'>11111111-2222-3333-4444-555555555555</entry></system></sysinfo>
  <os><type>hvm</type><loader readonly='yes' type='pflash'>/fw/CODE.fd</loader><nvram>/fw/web_VARS.fd</nvram></os>
  <devices>
    <!-- <mac address='52:54:00:00:00:01'/> -->
    <disk type='file' device='disk'><driver type='qcow2'/><source file='/vm/a.qcow2'/><target dev='vda'/></disk>
    <disk type='network' device='disk'><driver type='raw'/><source protocol='rbd' name='pool/web-data'/><target dev='vdb'/></disk>
    <disk type='block' device='disk'><source dev='/dev/vg/web'/><target dev='vdc'/></disk>
    <disk type='file' device='cdrom'><source file='/iso'/><target dev='sda'/><readonly/></disk>
    <disk type='volume' device='disk'><source pool='p' volume='v'/><target dev='vdd'/></disk>
    <interface type='network'><mac address="52:54:00:00:00:01"/><source network='default'/><target dev='vnet3'/></interface>
    <interface type='bridge'><mac address='52:54:00:AB:CD:EF'/><source bridge='br0'/><target dev='web-tap'/>
      <virtualport type='openvswitch'><parameters interfaceid='11111111-2222-3333-4444-555555555557'/></virtualport></interface>
    <interface type='hostdev'><mac address='52:54:00:00:00:01'/><source><address type='pci' domain='0x0000' bus='0x3' slot='0x00' function='0x1'/></source></interface>
    <interface type='user'/>
    <hostdev mode='subsystem' type='pci'><source><address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></source></hostdev>
    <hostdev mode='subsystem' type='usb'><source><vendor id='0x1234'/><product id='0xabcd'/></source></hostdev>
    <hostdev mode='subsystem' type='mdev'><source><address uuid='aaaaaaaa-2222-3333-4444-555555555555'/></source></hostdev>
    <hostdev mode='subsystem' type='scsi'><source><adapter name='scsi_host0'/><address bus='0' target='0' unit='0'/></source></hostdev>
    <filesystem type='mount'><source dir='/srv/share'/><target dir='s'/></filesystem>
    <filesystem type='mount'><source dir='/srv/read'/><target dir='r'/><readonly/></filesystem>
    <graphics type='vnc' port='5901' autoport='no'/>
    <graphics type='spice' autoport='yes' port='5900'/>
    <serial type='tcp'><source mode='bind' host='::' service='4555'/></serial>
    <serial type='pty'/>
    <channel type='unix'><source mode='bind' path='/run/libvirt/qemu/channel/1-web/org.qemu.guest_agent.0'/></channel>
    <channel type='unix'><source mode='bind' path='/run/mine'/></channel>
    <vsock><cid auto='no' address='7'/></vsock>
    <tpm><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>
  </devices>
</domain>
`

func TestNewIdentity(t *testing.T) {
	t.Parallel()
	moved := domain.Moved{Disks: map[string]domain.Image{"vda": {Path: "/r/vda.qcow2", Format: "qcow2"}}, Name: "web2", NewIdentity: true}
	a, err := domain.Adjust([]byte(original), moved)
	if err != nil {
		t.Fatal(err)
	}
	text := string(a.XML)
	for what, n := range map[string]int{
		"<name>web2</name>": 1, a.UUID: 2, "11111111-2222": 0, ">S1<": 1,
		// What stands in a comment is no address.
		"52:54:00:00:00:01": 1, "52:54:00:AB:CD:EF": 0, "interfaceid='": 1,
	} {
		if strings.Count(text, what) != n {
			t.Errorf("%q is there %d times, want %d:\n%s", what, strings.Count(text, what), n, text)
		}
	}
	// A pair for failover shares its address still.
	found := regexp.MustCompile(`<mac address='([^']*)'/>`).FindAllStringSubmatch(strings.ReplaceAll(text, "<!-- <mac address='52:54:00:00:00:01'/>", ""), -1)
	if len(found) != 3 || found[0][1] != found[2][1] || found[0][1] == found[1][1] || len(a.MACs) != 2 ||
		a.MACs["52:54:00:00:00:01"] != found[0][1] || !strings.HasPrefix(found[1][1], "52:54:00:") {
		t.Errorf("addresses: %q, %v", found, a.MACs)
	}
	other, err := domain.Adjust([]byte(original), moved)
	if err != nil || other.UUID == a.UUID || other.MACs["52:54:00:00:00:01"] == a.MACs["52:54:00:00:00:01"] {
		t.Errorf("the same identity twice: %+v, %v", other, err)
	}
	if want := []string{"disk vdb (network, rbd pool/web-data)", "disk vdc (/dev/vg/web)", "disk vdd (volume v of pool p)"}; !slices.Equal(a.OtherDisks, want) {
		t.Errorf("other disks: %q", a.OtherDisks)
	}
	want := []string{
		"the firmware's variables /fw/web_VARS.fd", "the network device web-tap", "the host's network device 0000:03:00.1",
		"the host's device 0000:01:00.0", "the host's device usb 0x1234:0xabcd", "the host's device aaaaaaaa-2222-3333-4444-555555555555",
		"the host's device scsi_host0", "the folder /srv/share", "the port 5901 (vnc)", "the port 4555 (serial)", "/run/mine (channel)",
		"the vsock address 7", "the TPM /dev/tpm0",
	}
	if !slices.Equal(a.Shared, want) {
		t.Errorf("shared:\n%s\nwant\n%s", strings.Join(a.Shared, "\n"), strings.Join(want, "\n"))
	}
}

// A name alone leaves the rest as it was, and nothing at all every byte.
func TestAdjustName(t *testing.T) {
	t.Parallel()
	a, err := domain.Adjust([]byte(original), domain.Moved{Name: "<b>"})
	if want := strings.Replace(original, ">web<", ">&lt;b&gt;<", 1); err != nil || string(a.XML) != want || a.Name != "<b>" || a.MACs != nil {
		t.Errorf("%v\n%s", err, a.XML)
	}
	if a, err := domain.Adjust([]byte(original), domain.Moved{}); err != nil || string(a.XML) != original {
		t.Errorf("%v\n%s", err, a.XML)
	}
	for what, in := range map[string]string{
		"no address":  "<domain><name>a</name><devices><interface><mac address='x'/></interface></devices></domain>",
		"one of IB":   "<domain><name>a</name><devices><interface><mac address='00:11:22:33:44:55:66:77'/></interface></devices></domain>",
		"no name":     "<domain><uuid>11111111-2222-3333-4444-555555555555</uuid></domain>",
		"empty names": "<domain><name></name></domain>",
	} {
		if a, err := domain.Adjust([]byte(in), domain.Moved{Name: "b", NewIdentity: true}); err == nil {
			t.Errorf("%s: %s", what, a.XML)
		}
	}
	// Where there is no UUID, libvirt makes one.
	if a, err := domain.Adjust([]byte("<domain><name>a</name></domain>"), domain.Moved{NewIdentity: true}); err != nil || a.UUID != "" {
		t.Errorf("%v, %+v", err, a)
	}
}
