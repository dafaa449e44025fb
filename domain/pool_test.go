// SPDX-License-Identifier: Apache-2.0

package domain_test

import (
	"io/fs"
	"testing"

	"github.com/imgbackup/imgbackup/domain"
)

// Where libvirt places the volumes of each type of pool, and what has no place on
// this host.
func TestPool(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]struct{ kind, path string }{
		`<pool type='dir'><name>p</name><target><path>/vm</path></target></pool>`:                                {"file", "/vm/v"},
		`<pool type='fs'><name>p</name><source><name>q</name></source><target><path>/vm/</path></target></pool>`: {"file", "/vm/v"},
		`<pool type='netfs'><name>p</name><target><path> /net </path></target></pool>`:                           {"file", "/net/v"},
		`<pool type='logical'><name>p</name><target><path>/dev/vg</path></target></pool>`:                        {"block", "/dev/vg/v"},
		`<pool type='disk'><source><name>p</name></source><target><path>/dev</path></target></pool>`:             {"block", "/dev/v"},
		`<pool type='rbd'><name>p</name><source><name>q</name></source></pool>`:                                  {},
		`<pool type='zfs'><name>p</name><target><path>/dev/zvol/p</path></target></pool>`:                        {},
		`<pool type='dir'><name>p</name><target><path>vm</path></target></pool>`:                                 {},
	} {
		p, err := domain.ParsePool([]byte(text))
		if err != nil || p.Name != "p" {
			t.Errorf("%s: got %+v, %v", text, p, err)
			continue
		}
		kind, path, err := p.Volume("v")
		if kind != want.kind || path != want.path || (err == nil) != (want.kind != "") {
			t.Errorf("%s: got %s %s, %v", text, kind, path, err)
		}
		for _, name := range []string{"", ".", "..", "../v", "a/b", "/etc/shadow"} {
			if _, _, err := p.Volume(name); err == nil {
				t.Errorf("%s: volume %q is taken", text, name)
			}
		}
	}
	for _, text := range []string{``, `<network/>`, `<pool type='dir'/>`, `<pool type='dir'><name>../p</name></pool>`, `<pool><name>p</name>`} {
		if p, err := domain.ParsePool([]byte(text)); err == nil {
			t.Errorf("%s: got %+v", text, p)
		}
	}
}

// A volume is where the pool of exactly its name says; else the disk says why not.
func TestResolveVolumes(t *testing.T) {
	t.Parallel()
	d, err := domain.Parse([]byte(`<domain><name>web</name><devices>
		<disk type='volume'><source pool='a' volume='v'/><target dev='vda'/></disk>
		<disk type='volume'><source pool='b' volume='v'/><target dev='vdb'/></disk>
		<disk type='volume'><source pool='../b' volume='v'/><target dev='vdc'/></disk>
		<disk type='volume'><source pool='none' volume='v'/><target dev='vdd'/></disk>
		<disk type='volume' device='cdrom'><target dev='vde'/></disk>
		<disk type='file'><source file='/f'/><target dev='vdf'/></disk></devices></domain>`))
	if err != nil {
		t.Fatal(err)
	}
	asked := make(map[string]int)
	d.ResolveVolumes(func(pool string) ([]byte, error) {
		asked[pool]++
		if pool == "none" {
			return nil, fs.ErrNotExist
		}
		return []byte(`<pool type='dir'><name>a</name><target><path>/vm</path></target></pool>`), nil
	})
	for i, want := range []struct {
		kind, path string
		unresolved bool
	}{{"file", "/vm/v", false}, {"volume", "", true}, {"volume", "", true}, {"volume", "", true}, {"volume", "", false}, {"file", "/f", false}} {
		if got := d.Disks[i]; got.Type != want.kind || got.Path != want.path || (got.Unresolved != nil) != want.unresolved {
			t.Errorf("disk %s: got %+v", got.Target, got)
		}
	}
	if !d.Disks[4].Empty() || asked["../b"] > 0 || asked["a"] != 1 {
		t.Errorf("an empty drive, or what was asked: %v", asked)
	}
}
