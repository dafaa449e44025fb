// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"context"
	"slices"
	"testing"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/bitmapstore"
)

// A pull that makes a checkpoint can read, for as long as it goes on, changes that
// only the repository knows.
func TestPullOfRecordedChanges(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.create("a", "4M")
	l.write("a", "write -P 1 0 1M")
	l.backup("c1", l.disk("a"))
	l.write("a", "write -P 2 64k 64k")
	l.backup("c2", l.disk("a"))
	l.img("bitmap", "--remove", l.path("a"), l.bitmapOf("c1"))
	l.write("a", "write -P 3 256k 64k")
	req := l.request("c3", l.disk("a"))
	req.Mode, req.Since = backup.Incremental, "c1"
	var got []bitmapstore.Run
	r, err := backup.Pull(t.Context(), l.repo, req, backup.Hooks{}, func(ctx context.Context, disks []backup.OpenDisk) (err error) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := l.repo.Manifest(ctx, "vm", "c3"); err != nil {
			t.Errorf("the checkpoint does not stand yet: %v", err)
		}
		got, err = disks[0].Changes.Collect()
		return err
	})
	l.must(err)
	if want := []bitmapstore.Run{{Start: 64 << 10, End: 128 << 10}, {Start: 256 << 10, End: 320 << 10}}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if p := r.Plan.Disks[0]; p.Mode != backup.Incremental || p.Since.Name != "c1" {
		t.Errorf("%+v", p)
	}
}
