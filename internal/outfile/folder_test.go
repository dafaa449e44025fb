// SPDX-License-Identifier: Apache-2.0

package outfile

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

func testFolder(t *testing.T) *folder {
	t.Helper()
	d, err := openFolder(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.f.Close() })
	return d
}

func testPartial(t *testing.T, d *folder, target, content string) *partial {
	t.Helper()
	p, err := d.createPartial(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.f.Close() })
	if _, err := p.f.WriteString(content); err != nil {
		t.Fatal(err)
	}
	return p
}

func testForeign(t *testing.T, d *folder, target, content string) *partial {
	t.Helper()
	p, err := d.createForeign(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = p.f.Close(), p.room.Close() })
	if _, err := p.f.WriteString(content); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPartialNames(t *testing.T) {
	t.Parallel()
	for _, target := range []string{"vda.raw", "x", strings.Repeat("y", 255), ".hidden"} {
		name := partialName(target)
		if !isPartialName(name) || len(name) > maxFileName || name == partialName(target) {
			t.Errorf("partial name of %q: %q", target, name)
		}
	}
	for _, name := range []string{
		"", ".", "vda.raw", ".vda.raw", ".partial", ".imgbackup-.partial", "vda.imgbackup-0123456789abcdef.partial",
		".vda.imgbackup-0123456789ABCDEF.partial", ".vda.imgbackup-0123456789abcde.partial", ".vda.imgbackup-0123456789abcdeg.partial",
		".imgbackup-0123456789abcdef.partial", ".vda.imgbackup-0123456789abcdef.partial2", ".vda.other-0123456789abcdef.partial",
	} {
		if isPartialName(name) {
			t.Errorf("%q is taken for a partial file", name)
		}
	}
}

func TestSweepRemovesOnlyWhatIsStale(t *testing.T) {
	t.Parallel()
	d := testFolder(t)
	living := testPartial(t, d, "vda.raw", "living")
	stale := testPartial(t, d, "vdb.raw", "stale")
	if err := stale.f.Close(); err != nil {
		t.Fatal(err)
	}
	room := testForeign(t, d, "vdc.vmdk", "living")
	left := testForeign(t, d, "vdd.vmdk", "stale")
	if err := left.room.Close(); err != nil {
		t.Fatal(err)
	}
	keep := []string{living.name, "vda.raw", ".vda.raw.partial", ".link.imgbackup-0123456789abcdef.partial", room.roomName}
	for _, name := range keep[1:3] {
		if err := os.WriteFile(filepath.Join(d.path, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("vda.raw", filepath.Join(d.path, keep[3])); err != nil {
		t.Fatal(err)
	}
	d.sweep()
	got := testkit.Names(t, d.path)
	slices.Sort(keep)
	slices.Sort(got)
	if !slices.Equal(got, keep) {
		t.Errorf("after the sweep: %q, want %q", got, keep)
	}
}

func TestPartialIsPrivateAndRemoved(t *testing.T) {
	t.Parallel()
	d := testFolder(t)
	p := testPartial(t, d, "vda.raw", "x")
	st, err := p.f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	other, err := os.Open(p.path())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
		t.Error("the partial file is not locked")
	}
	if err := p.remove(); err != nil {
		t.Fatal(err)
	}
	if got := testkit.Names(t, d.path); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
}
