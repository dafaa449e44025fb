// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"strings"
	"testing"
	"time"
)

// adopted makes a checkpoint of another program of the sample.
func adopted(r *Repository, name string) *Manifest {
	m := without(r, name)
	now := time.Now().UTC().Truncate(time.Second)
	d := &m.Disks[0]
	d.Adopted, d.Bitmap, d.Held.Name = &now, "theirs", "theirs"
	own := d.Witnesses[0]
	own.Name, own.Adopted = d.Bitmap, m.UUID
	d.Witnesses = append(d.Witnesses, own)
	return m
}

func TestAdopted(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	commit(t, r, adopted(r, "one"))
	m, err := r.Manifest(t.Context(), "web", "one")
	if err != nil {
		t.Fatal(err)
	}
	st := DiskState{m, &m.Disks[0]}
	if own := st.OwnRecord(); own == nil || own.Name != "theirs" || st.AdoptedAs() != m.UUID {
		t.Errorf("its own record: %+v, of %s", own, st.AdoptedAs())
	}
	other := *m
	other.UUID = NewUUID()
	if own := (DiskState{&other, &m.Disks[0]}).OwnRecord(); own != nil {
		t.Errorf("a record of another checkpoint's bitmap counts: %+v", own)
	}
	if got := (States{st}).AdoptedAs("theirs"); got != m.UUID {
		t.Errorf("adopted as %q", got)
	}
	for name, break_ := range map[string]func(m *Manifest){
		"an archive":       func(m *Manifest) { m.Kind, m.Requested = KindArchive, ModeAuto },
		"no bitmap":        func(m *Manifest) { m.Disks[0].Bitmap, m.Disks[0].Granularity = "", 0 },
		"our name":         func(m *Manifest) { m.Disks[0].Bitmap = BitmapName("one", m.UUID) },
		"NUL":              func(m *Manifest) { m.Disks[0].Bitmap = "a\x00b"; m.Disks[0].Held.Name = "a\x00b" },
		"too long":         func(m *Manifest) { m.Disks[0].Bitmap = strings.Repeat("a", 1024) },
		"local time":       func(m *Manifest) { at := time.Unix(1, 0).In(time.FixedZone("x", 3600)); m.Disks[0].Adopted = &at },
		"no uuid":          func(m *Manifest) { m.Disks[0].Witnesses[1].Adopted = "x" },
		"not said to be":   func(m *Manifest) { m.Disks[0].Adopted = nil },
		"held's old name":  func(m *Manifest) { m.Disks[0].Held.Name = BitmapName("one", m.UUID) },
		"odd granularity":  func(m *Manifest) { m.Disks[0].Granularity = 5 },
		"a layer too deep": func(m *Manifest) { m.Disks[0].Witnesses[1].Layer = 99 },
	} {
		m := adopted(r, "one")
		m.fill(r)
		if err := m.Validate(); err != nil {
			t.Fatal(err)
		}
		break_(m)
		if err := m.Validate(); err == nil {
			t.Errorf("%s: valid", name)
		}
	}
}

func TestLibvirtBitmap(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	m := r.sample("web", "one")
	m.Disks[0].LibvirtBitmap = "one"
	commit(t, r, m)
	for name, break_ := range map[string]func(d *Disk){
		"another name": func(d *Disk) { d.LibvirtBitmap = "two" },
		"no bitmap":    func(d *Disk) { d.Bitmap, d.Granularity = "", 0 },
	} {
		m := r.sample("web", "one")
		m.Disks[0].LibvirtBitmap = "one"
		m.fill(r)
		if err := m.Validate(); err != nil {
			t.Fatal(err)
		}
		break_(&m.Disks[0])
		if err := m.Validate(); err == nil {
			t.Errorf("%s: valid", name)
		}
	}
	if f := forgottenOf(m); f.Disks[0].LibvirtBitmap != "one" || f.Disks[0].Bitmap == "" {
		t.Errorf("forgotten: %+v", f.Disks[0])
	}
	if f := forgottenOf(adopted(r, "two")); f.Disks[0].Bitmap != "" {
		t.Errorf("another program's bitmap is remembered as ours: %+v", f.Disks[0])
	}
}
