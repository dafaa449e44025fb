// SPDX-License-Identifier: Apache-2.0

package domain_test

import (
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"pgregory.net/rapid"

	"github.com/imgbackup/imgbackup/domain"
)

func domainCorpus(t testing.TB) *txtar.Archive {
	t.Helper()
	archive, err := txtar.ParseFile(filepath.Join("..", "testdata", "xml", "domain.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	if len(archive.Files) < 20 {
		t.Fatalf("%d files in the corpus", len(archive.Files))
	}
	return archive
}

func domainSeeds(t testing.TB) (texts []string) {
	for _, f := range domainCorpus(t).Files {
		if strings.HasSuffix(f.Name, ".xml") {
			texts = append(texts, string(f.Data))
		}
	}
	if len(texts) < 10 {
		t.Fatalf("%d seeds", len(texts))
	}
	return texts
}

// Each NAME.xml of the corpus is refused with NAME.error, or is described by
// NAME.disks.
func TestParseDomain(t *testing.T) {
	t.Parallel()
	files := make(map[string]string)
	for _, f := range domainCorpus(t).Files {
		files[f.Name] = string(f.Data)
	}
	for name, text := range files {
		name, ok := strings.CutSuffix(name, ".xml")
		if !ok {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, err := domain.Parse([]byte(text))
			if want, refused := files[name+".error"]; refused {
				if err == nil || !strings.Contains(err.Error(), strings.TrimSpace(want)) {
					t.Fatalf("error %v, want one with %q", err, want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want, ok := files[name+".disks"]
			if got := describe(d); !ok || got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func describe(d *domain.Domain) string {
	var b strings.Builder
	line := func(words ...string) {
		b.WriteString(strings.Join(strings.Fields(strings.Join(words, " ")), " ") + "\n")
	}
	line("domain", d.Name, d.UUID)
	if d.Loader != "" {
		line("loader", d.Loader, yes(d.LoaderReadOnly, "read-only"))
	}
	if d.NVRAM != "" {
		line("nvram", d.NVRAM)
	}
	for _, disk := range d.Disks {
		line(disk.Target, disk.Device, disk.Type, "format="+disk.Format, disk.Path, disk.Protocol,
			yes(disk.ReadOnly, "read-only"), yes(disk.Empty(), "empty"), yes(disk.Sliced, "sliced"), yes(disk.BackingEnds, "ends"))
		for _, im := range disk.Backing {
			line("backed by", im.Type, "format="+im.Format, im.Path)
		}
	}
	return b.String()
}

func yes(b bool, word string) string {
	if b {
		return word
	}
	return ""
}

// A definition goes into a checkpoint and comes out of it as it was, but for its
// white space; text of any kind is kept.
func TestDomainInCheckpoint(t *testing.T) {
	t.Parallel()
	const def = "<!-- edited -->\n<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>web</name>" +
		"<title>a &lt;b> &amp; 'c'</title><metadata><x:y xmlns:x='urn:x'>one <b>two</b> three</x:y></metadata><devices><emulator/></devices>" +
		"<qemu:commandline><qemu:arg value='-x'/></qemu:commandline></domain>"
	const want = `<domaincheckpoint>
  <name>c1</name>
  <domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
    <name>web</name>
    <title>a &lt;b&gt; &amp; &apos;c&apos;</title>
    <metadata>
      <x:y xmlns:x='urn:x'>one <b>two</b> three</x:y>
    </metadata>
    <devices>
      <emulator/>
    </devices>
    <qemu:commandline>
      <qemu:arg value='-x'/>
    </qemu:commandline>
  </domain>
</domaincheckpoint>
`
	c := &domain.Checkpoint{Name: "c1"}
	if err := c.SetDomain([]byte(def)); err != nil {
		t.Fatal(err)
	}
	if got := string(c.Format()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	again, err := domain.ParseCheckpoint([]byte(want))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(again.Domain, c.Domain) || string(again.Format()) != want {
		t.Errorf("read again:\n%s", again.Format())
	}
}

// Whatever the texts, what is written can be read.
func TestFormatOfAnyText(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		text := string(rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(rt, "text"))
		c := &domain.Checkpoint{Name: "c1", Description: text, Disks: []domain.CheckpointDisk{{Name: "vda", Record: true, Bitmap: "b" + text}}}
		again, err := domain.ParseCheckpoint(c.Format())
		if err != nil {
			rt.Fatalf("%v\n%s", err, c.Format())
		}
		if string(again.Format()) != string(c.Format()) {
			rt.Fatalf("\n%s\nbecame\n%s", c.Format(), again.Format())
		}
		if plain := strings.IndexFunc(text, func(r rune) bool { return r < 0x20 || r == 0xfffd || r > 0xfff0 }) < 0; plain && again.Description != text {
			rt.Fatalf("%q became %q", text, again.Description)
		}
	})
}
