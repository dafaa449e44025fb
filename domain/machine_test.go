// SPDX-License-Identifier: Apache-2.0

package domain

import (
	"fmt"
	"strings"
	"testing"
)

func TestParseMachine(t *testing.T) {
	t.Parallel()
	m, err := ParseMachine([]byte(`<domain type='kvm'><name>web</name><memory unit='GiB'>4</memory><currentMemory unit='MiB'>1500</currentMemory>
<vcpu placement='static' current='3'>8</vcpu><os firmware='efi'><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><loader secure='yes'/></os>
<clock offset='localtime'/><devices>
<disk type='file' device='disk'><source file='/a'/><target dev='sda'/><serial>S1</serial><boot order='2'/></disk>
<disk type='file' device='disk'><source file='/b'/><target dev='vda' bus='virtio'/></disk>
<controller type='scsi' model='virtio-scsi'/><interface type='user'><model type='virtio'/></interface><interface type='user'/>
<hostdev mode='subsystem' type='usb'><source><vendor id='0x1'/><product id='0x2'/></source></hostdev>
<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm><console type='pty'/></devices></domain>`))
	if err != nil {
		t.Fatal(err)
	}
	const want = "{Type:kvm Arch:x86_64 Machine:pc-q35-7.2 OSType:hvm CPUs:3 Memory:1572864000 EFI:true Secure:true LocalTime:true SCSI:virtio-scsi " +
		"Disks:[{Target:sda Bus:scsi Serial:S1 Order:2} {Target:vda Bus:virtio Serial: Order:0}] NICs:[virtio ] TPM:tpm-crb TPMOld:false " +
		"Kernel:false Serial:true Left:[the host's device usb 0x1:0x2]}"
	if got := fmt.Sprintf("%+v", *m); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}

func TestParseMachineMemory(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{
		"<memory>1024</memory>": 1 << 20, "<memory unit='TB'>1</memory>": 1e12, "<memory unit='b'>5</memory>": 5, "<memory unit='x'>5</memory>": 0,
		"<memory unit='TiB'>99999999999</memory>": 0, "<memory>-1</memory>": 0, "": 0,
	} {
		m, err := ParseMachine([]byte("<domain><name>a</name>" + text + "</domain>"))
		if err != nil || m.Memory != want || m.CPUs != 1 {
			t.Errorf("%s: %+v, %v; want %d", text, m, err, want)
		}
	}
}

func FuzzParseMachine(f *testing.F) {
	f.Add("<domain type='kvm'><name>a</name><vcpu>2</vcpu><os><type arch='x86_64'>hvm</type></os><devices><disk><target dev='vda'/></disk></devices></domain>")
	f.Fuzz(func(t *testing.T, text string) {
		m, err := ParseMachine([]byte(text))
		if err != nil {
			return
		}
		if m.CPUs < 1 || m.Memory < 0 {
			t.Errorf("%+v", m)
		}
		for _, d := range m.Disks {
			if d.Target == "" || strings.ContainsAny(d.Target, "/,=") || d.Bus == "" {
				t.Errorf("disk %+v", d)
			}
		}
	})
}
