// SPDX-License-Identifier: Apache-2.0

package lima_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/domain/lima"
)

// definitions are as versions of Lima write them, or people do, and their additional disks.
var definitions = map[string][]string{
	// 0.8 to 1.2: comments of the template are kept.
	"# ===== BASIC CONFIGURATION =====\nvmType: null\narch: null\nimages:\n- location: \"https://example.org/a.img\"\n  arch: \"x86_64\"\n" +
		"mounts:\n- location: \"~\"\n  writable: null\nadditionalDisks:\n# disks should either be a list of disk name strings\n- \"data\"\n": {"data"},
	"additionalDisks:\n- name: data\n  format: true\n  fsType: ext4\n- name: \"swap.1\"\n": {"data", "swap.1"},
	// 2.x: what is not said is left out.
	"minimumLimaVersion: 2.0.0\nvmOpts:\n  qemu:\n    cpuType: {x86_64: host}\nos: Linux\n": nil,
	"additionalDisks: null\nvmType: qemu\n":                                                 nil,
	"additionalDisks: []\n":                                                                 nil,
	"":                                                                                      nil,
	"# nothing\n":                                                                           nil,
	"additionalDisks: [1, 2.5]\n":                                                           {"1", "2.5"},
	"x: &d data\nadditionalDisks: [*d]\n":                                                   {"data"},
	// What is to come.
	"additionalDisks:\n- {name: data, serial: 7, of: {a: [1]}}\nnew: [{}]\n": {"data"},
}

func TestParse(t *testing.T) {
	t.Parallel()
	for text, want := range definitions {
		i, err := lima.Parse([]byte(text))
		if err != nil || !slices.Equal(i.Disks, want) {
			t.Errorf("%q: %+v, %v", text, i, err)
		}
	}
	i, err := lima.Parse([]byte("vmType: vz\n"))
	if err != nil || i.VMType != "vz" {
		t.Errorf("%+v, %v", i, err)
	}
}

// hostile are no definitions, and the names in some of them lead elsewhere.
var hostile = []string{
	"additionalDisks: [../../etc]\n", "additionalDisks: [{name: /etc/shadow}]\n", "additionalDisks: [\"a/b\"]\n", "additionalDisks: [..]\n",
	"additionalDisks: [\"a\\0b\"]\n", "additionalDisks: [{}]\n", "additionalDisks: [[a]]\n", "additionalDisks: data\n", "additionalDisks: ['']\n",
	"additionalDisks: [_x]\n", "additionalDisks: [a-]\n", "additionalDisks: [a..b]\n", "additionalDisks: [" + strings.Repeat("a", 77) + "]\n",
	"a: b\n---\nc: d\n", "- a\n", "\x00", "a: [", "vmType: [a]\n", "a: &a [*a]\nadditionalDisks: *a\n", "a: 1\na: 2\n",
	"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\nadditionalDisks: [*d,*d,*d]\n",
	strings.Repeat("#", lima.MaxYAML+1),
}

func TestParseHostile(t *testing.T) {
	t.Parallel()
	for _, text := range hostile {
		if i, err := lima.Parse([]byte(text)); err == nil {
			t.Errorf("%.100q: %+v", text, i)
		}
	}
}

func TestWith(t *testing.T) {
	t.Parallel()
	of := func(vmType string, disks ...string) *lima.Instance {
		return &lima.Instance{VMType: vmType, Disks: disks}
	}
	all, err := of("", "b").With(of("", "a"), of("qemu", "c"))
	if err != nil || all.VMType != "qemu" || !slices.Equal(all.Disks, []string{"a", "b", "c"}) {
		t.Errorf("%+v, %v", all, err)
	}
	if all, err = of("vz").With(of("qemu"), nil); err != nil || all.VMType != "qemu" {
		t.Errorf("%+v, %v", all, err)
	}
	if all, err = of("vz", "a").With(nil, nil); err != nil || all.VMType != "vz" || len(all.Disks) != 1 {
		t.Errorf("%+v, %v", all, err)
	}
	if _, err = of("", "a").With(nil, of("", "a")); err == nil {
		t.Error("one disk twice")
	}
}

// FuzzParse: whatever is read, names in it are names.
func FuzzParse(f *testing.F) {
	for text := range definitions {
		f.Add([]byte(text))
	}
	for _, text := range hostile[:len(hostile)-1] {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		i, err := lima.Parse(data)
		if err != nil {
			return
		}
		for _, name := range i.Disks {
			if strings.ContainsAny(name, "/\x00\n") || name == "" || strings.Contains(name, "..") || strings.HasPrefix(name, "_") {
				t.Errorf("%q of %q", name, data)
			}
		}
	})
}
