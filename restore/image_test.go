// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/qcow2"
)

// A restored qcow2 that goes on has the checkpoint's bitmap, empty and enabled,
// and QEMU records in it.
func TestContinue(t *testing.T) {
	t.Parallel()
	r, m, disks := twoDisks(t)
	dir := t.TempDir()
	targets := mustTargets(t, m, dir, qcow2.Qcow2)
	res, err := Run(context.Background(), r.repo, m, targets, Options{Continue: true, Verify: true})
	if err != nil {
		t.Fatal(err)
	}
	for i, tg := range targets {
		checkRestored(t, tg.Path, qcow2.Qcow2, disks[i].content)
		if res.Disks[i].Bitmap != m.Disks[i].Bitmap {
			t.Errorf("result %+v", res.Disks[i])
		}
		var info struct {
			Specific struct {
				Data struct {
					Bitmaps []struct {
						Name        string
						Granularity int64
						Flags       []string
					}
				}
			} `json:"format-specific"`
		}
		if err := json.Unmarshal([]byte(testkit.Tool(t, "qemu-img", "info", "--output=json", tg.Path)), &info); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(info.Specific.Data.Bitmaps); got != "[{cp.0123456789abcdef 65536 [auto]}]" {
			t.Errorf("bitmaps %s", got)
		}
		dirty := func() int64 {
			c, err := qcow2.Open(tg.Path, qcow2.Qcow2, qcow2.OpenOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			n, err := c.Layers[0].Bitmaps[0].DirtyBytes()
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		if n := dirty(); n != 0 {
			t.Errorf("%d dirty bytes", n)
		}
		testkit.Tool(t, "qemu-io", "-f", "qcow2", "-c", "write 100k 1k", "-c", "write -z 512k 64k", tg.Path)
		if n := dirty(); n != 128<<10 {
			t.Errorf("%d dirty bytes after writes", n)
		}
	}
	// Without it there is none.
	other := filepath.Join(dir, "other")
	if _, err := Run(context.Background(), r.repo, m, []Target{{"vda", other, qcow2.Qcow2}}, Options{Verify: true}); err != nil {
		t.Fatal(err)
	}
	if out := testkit.Tool(t, "qemu-img", "info", other); strings.Contains(out, "bitmap") {
		t.Error(out)
	}
}

// A sparse disk of 16 TiB, which as a raw file ext4 cannot hold, restores to a
// small qcow2.
func TestSparse16TiB(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	const size = 16 << 40
	r := newTestRepo(t)
	w, err := archive.NewWriter(ctx, r.store, archive.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	mw := w.NewMap("vda", size, true)
	for i, off := range []int64{0, 7 << 40, size - 512} {
		content := []byte(strings.Repeat(string(rune('a'+i)), 512))
		if err := mw.Add(ctx, off, 512, func(context.Context, []byte) ([]archive.Piece, error) {
			return []archive.Piece{{Offset: off, Length: 512, Data: content}}, nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := mw.Close(ctx); err != nil {
		t.Fatal(err)
	}
	refs, _, err := w.Finish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	m := &chain.Manifest{Disks: []chain.Disk{{Name: "vda", Size: size, ClusterSize: 512, Bitmap: "b", Granularity: 64 << 10, Maps: refs}}}
	path := filepath.Join(t.TempDir(), "vda.qcow2")
	// Clusters of 512 bytes cannot hold so large a disk: larger ones are taken.
	if _, err := Run(ctx, r.repo, m, []Target{{"vda", path, qcow2.Qcow2}}, Options{Continue: true, Verify: true}); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Blocks*512 > 1<<20 {
		t.Errorf("%d bytes on disk (%v)", st.Blocks*512, err)
	}
	out := testkit.Tool(t, "qemu-img", "check", path)
	if !strings.Contains(out, "No errors were found") {
		t.Error(out)
	}
	out = testkit.Tool(t, "qemu-io", "-r", "-f", "qcow2", "-c", "read -P 0x61 0 512", "-c", "read -P 0x62 7T 512",
		"-c", fmt.Sprintf("read -P 0x63 %d 512", int64(size-512)), "-c", "read -P 0 8T 1M", path)
	if strings.Contains(out, "failed") || strings.Count(out, "read ") != 4 {
		t.Error(out)
	}
	if err := os.Remove(path); err != nil {
		t.Error(err)
	}
}
