// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"strings"
	"testing"
	"time"
)

// What an imported checkpoint may say, and what not; paths are any bytes.
func TestImported(t *testing.T) {
	t.Parallel()
	good := func() *Manifest {
		return &Manifest{Kind: KindArchive, Disks: []Disk{{Name: "vda"}}, Imported: &Imported{
			At: time.Unix(1, 0).UTC(), From: "files", Time: TimeOfFile, Files: []ImportedFile{{Disk: "vda", Path: "/a\xff", Size: 1, Mtime: 2}},
		}}
	}
	check := func(m *Manifest) error {
		var c checker
		m.Imported.validate(&c, m)
		return c.err
	}
	if err := check(good()); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(m *Manifest){
		"without data":    func(m *Manifest) { m.Kind = KindCheckpoint },
		"imported.at":     func(m *Manifest) { m.Imported.At = time.Time{} },
		"imported.from":   func(m *Manifest) { m.Imported.From = strings.Repeat("a", 256) },
		"time_from":       func(m *Manifest) { m.Imported.Time = "guessed" },
		"0 files":         func(m *Manifest) { m.Imported.Files = nil },
		"is not there":    func(m *Manifest) { m.Imported.Files[0].Disk = "vdb" },
		"from no file":    func(m *Manifest) { m.Disks = append(m.Disks, Disk{Name: "vdb"}) },
		"no path":         func(m *Manifest) { m.Imported.Files[0].Path = "" },
		"below 0":         func(m *Manifest) { m.Imported.Files[0].Size = -1 },
		"and has a bitma": func(m *Manifest) { m.Disks[0].Bitmap = "b" },
	} {
		m := good()
		change(m)
		if err := check(m); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	m := good()
	stored, err := m.mapTexts(func(s string) (string, error) { return "x" + s, nil })
	if err != nil || stored.Imported.Files[0].Path != "x/a\xff" || m.Imported.Files[0].Path != "/a\xff" {
		t.Errorf("%+v, %+v, %v", stored.Imported, m.Imported, err)
	}
}
