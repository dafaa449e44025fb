// SPDX-License-Identifier: Apache-2.0

package guestfs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

// startOnKVM starts a session where KVM seems to be there, and its appliance does what run says
// at its start.
func startOnKVM(t *testing.T, cache, run string, patience time.Duration, keys []Key) (notes []string, emulated bool, err error) {
	t.Helper()
	dir := t.TempDir()
	socket, device := filepath.Join(dir, "socket"), filepath.Join(dir, "kvm")
	if err := errors.Join(os.WriteFile(socket, nil, 0o600), os.WriteFile(device, nil, 0o600), os.Chmod(device, 0o666)); err != nil {
		t.Fatal(err)
	}
	program := testkit.Guestfish(t, "run) "+run+" ;;\n vfs-type) echo ext4 ;;")
	s, err := Start(t.Context(), Options{
		Disks: []Disk{{Name: "vda", Socket: socket}}, TempDir: dir, Program: program, Cache: cache, Keys: keys,
		Note: func(msg string) {
			if strings.Contains(msg, "emulated") {
				notes = append(notes, msg)
			}
		},
		kvm: device, patience: patience,
	})
	if err == nil {
		emulated = s.Emulated
		err = s.Close()
		verifyEnded(t, s)
	}
	if left := testkit.Names(t, dir); len(left) != 2 {
		t.Errorf("left behind: %q", left)
	}
	return notes, emulated, err
}

const (
	emulatedOnly = `[ -n "$LIBGUESTFS_BACKEND_SETTINGS$LIBGUESTFS_HV" ] || ` // or while it is built
	hangs        = emulatedOnly + "exec sleep 1000"
	fails        = emulatedOnly + "echo 'libguestfs: error: no' >&2"
	neverStarts  = "echo 'libguestfs: error: no' >&2"
	patient      = time.Minute
)

// Where KVM hangs the first session waits, and falls back; the next ones go without at once,
// for a day and this boot.
func TestKVMThatHangs(t *testing.T) {
	t.Parallel()
	cache := filepath.Join(t.TempDir(), "cache")
	first := func(patience time.Duration) {
		t.Helper()
		notes, emulated, err := startOnKVM(t, cache, hangs, patience, nil)
		if err != nil || !emulated || len(notes) != 1 || !strings.Contains(notes[0], errSlow.Error()) {
			t.Fatalf("%q, %v, %v", notes, emulated, err)
		}
	}
	first(time.Second)
	notes, emulated, err := startOnKVM(t, cache, hangs, patient, nil) // it would take that long
	if err != nil || !emulated || len(notes) != 1 || !strings.Contains(notes[0], filepath.Join(cache, noKVMFile)) {
		t.Fatalf("%q, %v, %v", notes, emulated, err)
	}
	if left := testkit.Names(t, cache); len(left) != 1 {
		t.Errorf("%q in the cache", left)
	}
	file := filepath.Join(cache, noKVMFile)
	for what, spoil := range map[string]func() error{
		"another boot": func() error { return os.WriteFile(file, []byte("11111111-2222-3333-4444-555555555555\n"), 0o600) },
		"long ago":     func() error { return os.Chtimes(file, time.Time{}, time.Now().Add(-noKVMFor-time.Hour)) },
		"to come":      func() error { return os.Chtimes(file, time.Time{}, time.Now().Add(time.Hour)) },
		"nothing":      func() error { return os.WriteFile(file, nil, 0o600) },
		"a folder":     func() error { return errors.Join(os.Remove(file), os.Mkdir(file, 0o700)) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if (kvmWork{folder: cache, bootID: bootID}).failed() {
			t.Errorf("%s: it is believed", what)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		first(time.Second)
	}
}

// Nothing is remembered where KVM works, where nothing does, where it was not KVM's fault, or
// where there is no cache.
func TestKVMNothingRemembered(t *testing.T) {
	t.Parallel()
	cache := t.TempDir()
	if notes, emulated, err := startOnKVM(t, cache, "true", patient, nil); err != nil || emulated || len(notes) > 0 {
		t.Errorf("it works: %q, %v, %v", notes, emulated, err)
	}
	if notes, _, err := startOnKVM(t, cache, neverStarts, patient, nil); err == nil || len(notes) != 1 {
		t.Errorf("an appliance that never starts: %q, %v", notes, err)
	}
	// A key that opens nothing is told once.
	var locked *LockedError
	if notes, _, err := startOnKVM(t, cache, "true", patient, []Key{{Device: "/dev/sda1", Secret: []byte("x")}}); !errors.As(err, &locked) || len(notes) > 0 {
		t.Errorf("a key that opens nothing: %q, %v", notes, err)
	}
	if left := testkit.Names(t, cache); len(left) > 0 {
		t.Errorf("remembered: %q", left)
	}
	if _, emulated, err := startOnKVM(t, "", fails, patient, nil); err != nil || !emulated {
		t.Errorf("without a cache: %v, %v", emulated, err)
	}
}
