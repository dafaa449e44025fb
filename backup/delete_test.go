// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/checkpoint"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qemu"
)

// The bitmaps of another host's checkpoint are not in an image here by chance of
// its path.
func TestDeleteOfAnotherHost(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("a", "1M")
	l.createCheckpoint("k", l.disk("a"))
	l.doctor("k", func(m *chain.Manifest) {
		m.Host = chain.Host{Name: "elsewhere", ID: "0123456789abcdef0123456789abcdef"}
	})
	del := checkpoint.DeleteRequest{Domain: "vm", Checkpoint: "k"}
	if _, err := l.delete(del); err == nil || !strings.Contains(err.Error(), "elsewhere") {
		t.Errorf("got %v", err)
	}
	l.holds("a", "k")
	del.Paths = map[string]string{"vda": l.path("a")}
	_, err := l.delete(del)
	l.must(err)
	l.holds("a")
}

// A deletion's plan writes nothing, says what will be done, keeps other runs from the
// images, and is carried out once.
func TestDeletionIsAPlan(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("a", "1M")
	l.createCheckpoint("k1", l.disk("a"))
	l.createCheckpoint("k2", l.disk("a"))
	c3 := l.backup("c3", l.disk("a")).Manifest
	l.img("bitmap", "--remove", l.path("a"), c3.Disks[0].Bitmap)
	var p *checkpoint.Deletion
	l.unchanged(func() {
		var err error
		p, err = checkpoint.PlanDelete(t.Context(), l.repo, checkpoint.DeleteRequest{Domain: "vm", Checkpoint: "k1", Scope: checkpoint.ChildrenOnly})
		l.must(err)
	})
	defer p.Close()
	type step struct {
		name       string
		data, held bool
	}
	var steps []step
	for _, d := range p.Checkpoints {
		if len(d.Bitmaps) != 1 || d.Bitmaps[0].Path != l.path("a") || d.Bitmaps[0].Disk != "vda" {
			t.Fatalf("%+v", d)
		}
		steps = append(steps, step{d.Checkpoint.Name, d.KeepsData, d.Bitmaps[0].Held})
	}
	if want := []step{{"c3", true, false}, {"k2", false, true}}; !reflect.DeepEqual(steps, want) {
		t.Errorf("%+v, want %+v", steps, want)
	}
	var busy *qemu.BusyError
	if _, err := l.run(l.request("c4", l.disk("a")), backup.Hooks{}); !errors.As(err, &busy) {
		t.Errorf("a backup beside the plan: %v", err)
	}
	var notes []string
	done, err := p.Run(t.Context(), func(msg string) { notes = append(notes, msg) })
	l.must(err)
	if len(done) != 2 || len(done[1].Bitmaps) != 1 || len(notes) != 1 || !strings.Contains(notes[0], "c3") {
		t.Errorf("%+v, told %q", done, notes)
	}
	l.holds("a", "k1")
	if _, err := p.Run(t.Context(), func(string) {}); err == nil {
		t.Error("the plan is carried out twice")
	}
}

// What follows a checkpoint is not known when a manifest cannot be read: nothing is
// deleted then, rather than a part.
func TestDeleteChildrenBesideDamage(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("a", "1M")
	l.createCheckpoint("k1", l.disk("a"))
	l.createCheckpoint("k2", l.disk("a"))
	l.must(os.WriteFile(filepath.Join(l.repoDir, filepath.FromSlash(chain.ManifestKey("vm", "k2"))), []byte("{}"), 0o644))
	l.unchanged(func() {
		if _, err := l.delete(checkpoint.DeleteRequest{Domain: "vm", Checkpoint: "k1", Scope: checkpoint.WithChildren}); err == nil {
			t.Error("it was deleted")
		}
	})
}
