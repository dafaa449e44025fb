// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/checkpoint"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qemu"
)

// What changed since a checkpoint is looked at, and leaves no trace: also while another run
// of this program has the image.
func TestChangesSince(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("a", "4M")
	l.write("a", "write -P 1 0 1M")
	l.backup("c1", l.disk("a"))
	l.write("a", "write -P 2 128k 64k")
	guard, err := qemu.FlockImage(t.Context(), l.path("a"), 0)
	l.must(err)
	defer guard.Close()
	var all []checkpoint.Changes
	var runs []bitmapstore.Run
	l.unchanged(func() {
		l.must(checkpoint.ChangesSince(t.Context(), l.repo, l.request("", l.disk("a")), "c1", backup.Hooks{}, func(c []checkpoint.Changes) (err error) {
			all = c
			runs, err = c[0].Runs.Collect()
			return err
		}))
	})
	if len(all) != 1 || all[0].Disk != "vda" || all[0].Size != 4<<20 || all[0].How == "" {
		t.Errorf("%+v", all)
	}
	if want := []bitmapstore.Run{{Start: 128 << 10, End: 192 << 10}}; !slices.Equal(runs, want) {
		t.Errorf("%v, want %v", runs, want)
	}
}

// Where no bitmap is believed, nothing is told to have changed.
func TestChangesSinceNothingToBelieve(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("a", "1M")
	l.backup("c1", l.disk("a"))
	bitmap := l.bitmapOf("c1")
	for name, since := range map[string]string{"no such checkpoint": "c0", "no bitmap": "c1"} {
		if since == "c1" {
			l.img("bitmap", "--remove", l.path("a"), bitmap)
		}
		err := checkpoint.ChangesSince(t.Context(), l.repo, l.request("", l.disk("a")), since, backup.Hooks{}, func([]checkpoint.Changes) error {
			t.Errorf("%s: it is told", name)
			return nil
		})
		var refused *backup.NotTrustedError
		var disk *chain.DiskError
		if !errors.As(err, &refused) || !errors.As(err, &disk) || disk.Disk != "vda" {
			t.Errorf("%s: %v", name, err)
		}
		if since == "c0" && refused != nil && refused.Code != trust.ReasonNoCheckpoint {
			t.Errorf("%s: %s", name, refused.Code)
		}
	}
}

// What was seen of an image that changed meanwhile is an error, whatever was seen.
func TestLookAtAChangingImage(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("a", "1M")
	l.backup("c1", l.disk("a"))
	seen := false
	err := backup.Look(t.Context(), l.repo, l.request("", l.disk("a")), backup.Hooks{}, func(context.Context, []backup.Seen) error {
		seen = true
		l.patch("a", 1<<20, []byte("from someone without locks"))
		return nil
	})
	l.inUse(err, "a")
	if !seen {
		t.Error("nothing was looked at")
	}
}
