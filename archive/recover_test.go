// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
)

// TestRecoverByHand: a short shell script gives a checkpoint back without
// any code of ours, over deltas, zeros, a smaller and a larger size.
func TestRecoverByHand(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	repo := filepath.Join(dir, "repo")
	store := must2(objstore.CreateLocal(repo))(t)
	disk := append(random(1, 2*GridSize), text(1, GridSize)...)
	clear(disk[100_000:300_000])
	a, _ := fullBackup(t, store, disk)
	disk = disk[:GridSize+512]
	clear(disk[4096:8192])
	b, _ := backup(t, store, disk, false, span{4096, 4096})
	disk = append(bytes.Clone(disk), make([]byte, 3*GridSize)...)
	copy(disk[2*GridSize-5000:], text(3, 20_000))
	copy(disk[512:], random(4, 512))
	c, _ := backup(t, store, disk, false, span{512, 512}, span{2*GridSize - 5120, 25_600})
	checkRestore(t, store, disk, c, b, a)

	out := filepath.Join(dir, "disk.raw")
	recoverBy := func() ([]byte, error) {
		return exec.Command("sh", "testdata/recover.sh", repo, out, a.Name.String(), b.Name.String(), c.Name.String()).CombinedOutput()
	}
	if msg, err := recoverBy(); err != nil {
		t.Fatalf("%v: %s", err, msg)
	}
	if got := must2(os.ReadFile(out))(t); !bytes.Equal(got, disk) {
		t.Error("the disk recovered by hand is not the disk")
	}
	flip(t, store, keys(t, store, PackPrefix)[0], 200)
	if _, err := recoverBy(); err == nil {
		t.Error("a damaged pack is not seen by hand")
	}
}
