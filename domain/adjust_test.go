// SPDX-License-Identifier: Apache-2.0

package domain_test

import (
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/domain"
)

// adjust is domain.Adjust as far as its bytes are concerned.
func adjust(data []byte, m domain.Moved) ([]byte, error) {
	a, err := domain.Adjust(data, m)
	if err != nil {
		return nil, err
	}
	return a.XML, nil
}

func TestAdjust(t *testing.T) {
	t.Parallel()
	moved := domain.Moved{
		Disks: map[string]domain.Image{"vda": {Path: "/r/it's.raw", Format: "raw"}},
		NVRAM: "/r/<vars>", Loader: "/r/code",
	}
	head := "<domain><name>web</name>"
	for name, c := range map[string]struct{ in, want string }{
		"file":              {"<source file='/a'/>", "<source file='/r/it&apos;s.raw'/>"},
		"quotes and blanks": {"<source   file = \"/a\"  startupPolicy='optional' ></source>", "<source file='/r/it&apos;s.raw' startupPolicy='optional'></source>"},
		"children stay":     {"<source file='/a'><seclabel relabel='no'/></source>", "<source file='/r/it&apos;s.raw'><seclabel relabel='no'/></source>"},
		"index goes":        {"<source file='/a' index='3'/>", "<source file='/r/it&apos;s.raw'/>"},
		"backing goes":      {"<source file='/a'/>\n <backingStore type='file'><format type='raw'/><source file='/b'/><backingStore/></backingStore>", "<source file='/r/it&apos;s.raw'/>"},
		"mirror goes":       {"<source file='/a'/><mirror type='file' file='/b'/>", "<source file='/r/it&apos;s.raw'/>"},
		"comments stay":     {"<!-- <source file='/x'/> --><source file='/a'/>", "<!-- <source file='/x'/> --><source file='/r/it&apos;s.raw'/>"},
	} {
		in := head + "<devices><disk type='file'><driver type='qcow2'/>" + c.in + "<target dev='vda'/></disk></devices></domain>"
		want := head + "<devices><disk type='file'><driver type='raw'/>" + c.want + "<target dev='vda'/></disk></devices></domain>"
		got, err := adjust([]byte(in), domain.Moved{Disks: moved.Disks})
		if err != nil || string(got) != want {
			t.Errorf("%s: %v\n%s\nwant\n%s", name, err, got, want)
		}
	}
	for name, c := range map[string]struct{ in, want string }{
		"block": {
			head + "<devices><disk type='block'><driver type='raw'/><source dev='/dev/a'/><target dev='vda'/></disk></devices></domain>",
			head + "<devices><disk type='file'><driver type='raw'/><source file='/r/it&apos;s.raw'/><target dev='vda'/></disk></devices></domain>",
		},
		"no driver": {
			head + "<devices><disk>\n  <source file='/a'/>\n  <target dev='vda'/>\n</disk></devices></domain>",
			head + "<devices><disk type='file'>\n  <driver name='qemu' type='raw'/>\n  <source file='/r/it&apos;s.raw'/>\n  <target dev='vda'/>\n</disk></devices></domain>",
		},
		"no driver, backing first": {
			head + "<devices><disk> <backingStore/><source file='/a'/><target dev='vda'/></disk></devices></domain>",
			head + "<devices><disk type='file'><driver name='qemu' type='raw'/> <source file='/r/it&apos;s.raw'/><target dev='vda'/></disk></devices></domain>",
		},
		"others stay": {
			head + "<devices><disk type='file'><driver type='raw'/><source file='/a'/><target dev='vda'/></disk><disk type='file'><source file='/b'/><target dev='vdb'/></disk></devices></domain>",
			head + "<devices><disk type='file'><driver type='raw'/><source file='/r/it&apos;s.raw'/><target dev='vda'/></disk><disk type='file'><source file='/b'/><target dev='vdb'/></disk></devices></domain>",
		},
	} {
		got, err := adjust([]byte(c.in), domain.Moved{Disks: moved.Disks})
		if err != nil || string(got) != c.want {
			t.Errorf("%s: %v\n%s\nwant\n%s", name, err, got, c.want)
		}
	}
	for name, c := range map[string]struct{ in, want string }{
		"texts":  {"<loader type='pflash'>/a</loader><nvram template='/t'>/b</nvram>", "<loader type='pflash'>/r/code</loader><nvram template='/t'>/r/&lt;vars&gt;</nvram>"},
		"source": {"<loader>/a</loader><nvram type='block'><source dev='/b'/></nvram>", "<loader>/r/code</loader><nvram type='file'><source file='/r/&lt;vars&gt;'/></nvram>"},
	} {
		got, err := adjust([]byte(head+"<os>"+c.in+"</os></domain>"), domain.Moved{NVRAM: moved.NVRAM, Loader: moved.Loader})
		if want := head + "<os>" + c.want + "</os></domain>"; err != nil || string(got) != want {
			t.Errorf("%s: %v\n%s\nwant\n%s", name, err, got, want)
		}
	}
	// What cannot be pointed to is an error, not left as it is.
	for name, in := range map[string]string{
		"no such disk": "<domain><name>web</name></domain>",
		"no XML":       "<domain>",
	} {
		if got, err := adjust([]byte(in), moved); err == nil {
			t.Errorf("%s: %s", name, got)
		}
	}
	if got, err := adjust([]byte(head+"<os><nvram/></os></domain>"), domain.Moved{NVRAM: "/r/v"}); err == nil {
		t.Errorf("an empty nvram: %s", got)
	}
}

// adjusted demands that what Adjust makes of a definition names what was moved.
func adjusted(t *testing.T, data []byte, d *domain.Domain) {
	t.Helper()
	moved := domain.Moved{Disks: make(map[string]domain.Image)}
	for _, disk := range d.Disks {
		if !disk.Empty() {
			moved.Disks[disk.Target] = domain.Image{Path: "/r/" + strings.ReplaceAll(disk.Target, ":", "'"), Format: "qcow2"}
		}
	}
	out, err := adjust(data, moved)
	if err != nil {
		return // it says so
	}
	again, err := domain.Parse(out)
	if err != nil || len(again.Disks) != len(d.Disks) || again.Name != d.Name {
		t.Fatalf("%v\n%s", err, out)
	}
	for target, im := range moved.Disks {
		if disk, ok := again.Disk(target); !ok || disk.Path != im.Path || disk.Format != im.Format {
			t.Fatalf("%s is %+v", target, disk)
		}
	}
	unserved(t, data, out, moved.Disks)
}

// A disk that an NBD server has in its place is raw, reads of nothing else, and stops the guest where it fails.
func TestAdjustToSockets(t *testing.T) {
	t.Parallel()
	moved := domain.Moved{Disks: map[string]domain.Image{"vda": {Socket: "/r/it's"}}}
	const want = "<source protocol='nbd' name='vda'><host transport='unix' socket='/r/it&apos;s'/></source>"
	for name, in := range map[string]string{
		"file": "<disk type='file' device='disk'><driver name='qemu' type='qcow2' io='native' cache='none'/>" +
			"<source file='/a'><seclabel model='dac' relabel='no'/></source><backingStore type='file'><format type='raw'/><source file='/b'/></backingStore><target dev='vda'/></disk>",
		"empty": "<disk><target dev='vda'/></disk>",
	} {
		got, err := adjust([]byte("<domain><name>web</name><devices>"+in+"</devices></domain>"), moved)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, text := range []string{want, "type='raw'", " error_policy='stop'", "rerror_policy='stop'", "type='network'"} {
			if !strings.Contains(string(got), text) {
				t.Errorf("%s: there is no %s in %s", name, text, got)
			}
		}
		for _, text := range []string{"native", "backingStore", "seclabel", "file="} {
			if strings.Contains(string(got), text) {
				t.Errorf("%s: there is %s in %s", name, text, got)
			}
		}
	}
}
