// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
)

// diskNamedAs is a disk of a checkpoint.
type diskNamedAs struct{ checkpoint, disk string }

// kept does to a mutant what keeps repositories in order: whatever it comes to, the disks that were read
// before are read as the same afterwards, and the exit status says what was found. Each mutant has a turn of one
// command; in a soak all of them.
func (m *mutable) kept(t *testing.T, mu *mutant, sound map[diskNamedAs][]byte, met map[string]int) {
	if t.Failed() {
		return
	}
	commands := [][]string{
		{"repair"}, {"prune", "--max-unused", "0"}, {"forget", "web", "c1", "--prune"},
		{"drill", "web", "--checkpoint", "all", "--skip", "source,image,filesystems,boot", "--no-record", "--scratch", t.TempDir()},
	}
	if os.Getenv("IMGBACKUP_SOAK") == "" {
		met["turn"]++
		commands = commands[met["turn"]/2%len(commands):][:1] // of a plain one, and of an encrypted one
	}
	for _, args := range commands {
		store := inMemory(t, mu.objects)
		o := runIn(m.dir, store, m.key(), args...)
		if o.code != exitDone && o.code != exitDamage && o.code != exitFailed || strings.Contains(o.err, "goroutine ") {
			t.Errorf("%v: exit status %d: %s", args, o.code, o.err)
		}
		met[args[0]]++
		if args[0] == "drill" {
			m.drilled(t, o, sound)
			continue
		}
		m.stillReads(t, store, args, sound)
		if args[0] == "repair" && o.code == exitDone {
			if o := runIn(m.dir, store, m.key(), "check", "--read-data"); o.code != exitDone {
				t.Errorf("after a repair that ended with 0 a check ends with %d: %s%s", o.code, o.out, o.err)
			}
		}
	}
}

// key is the file with the repository's key; "": it has none.
func (m *mutable) key() string {
	if m.ring == nil {
		return ""
	}
	return "admin.key"
}

// drilled demands that a drill which passes is one of disks that can all be read.
func (m *mutable) drilled(t *testing.T, o outcome, sound map[diskNamedAs][]byte) {
	t.Helper()
	for _, name := range []string{"c1", "c2", "c3"} {
		if _, reads := sound[diskNamedAs{name, "vda"}]; o.code == exitDone && !reads && strings.Contains(o.out, name) {
			t.Errorf("a drill passes, but %s can't be read: %s", name, o.out)
		}
	}
}

// stillReads demands that what could be read is read as the same.
func (m *mutable) stillReads(t *testing.T, store objstore.Store, args []string, sound map[diskNamedAs][]byte) {
	t.Helper()
	repo := m.openIn(t, store)
	for d, want := range sound {
		if slices.Contains(args, d.checkpoint) {
			continue // it was forgotten
		}
		man, err := repo.Manifest(t.Context(), "web", d.checkpoint)
		if err != nil {
			t.Errorf("%v: %s was read, and now: %v", args, d.checkpoint, err)
			continue
		}
		got, err := readView(t, repo, man, d.disk)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%v: %s of %s was read, and is not any more, or as something else: %v", args, d.disk, d.checkpoint, err)
		}
	}
}
