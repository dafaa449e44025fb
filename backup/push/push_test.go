// SPDX-License-Identifier: Apache-2.0

package push

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/qcow2"
)

// life is a disk that is written to at random, and pushed now and then.
type life struct {
	*lab
	rng   *rand.Rand
	image string // the active layer
	size  int64
	chain int    // of overlays
	last  string // the newest checkpoint
	base  string // the push of that
	kept  []string
}

// span is a random range of whole sectors.
func (l *life) span(most int64) (start, length int64) {
	sectors := l.size / 512
	start = l.rng.Int64N(sectors)
	return start * 512, 512 * (1 + l.rng.Int64N(min(sectors-start, most/512)))
}

// happen lets one thing happen to the disk.
func (l *life) happen() {
	l.t.Helper()
	switch l.rng.IntN(12) {
	case 0, 1, 2, 3, 4:
		start, n := l.span(300 << 10)
		l.write(l.image, fmt.Sprintf("write -P %d %d %d", 1+l.rng.IntN(255), start, n))
	case 5, 6:
		start, n := l.span(600 << 10)
		l.write(l.image, fmt.Sprintf("write -z %d %d", start, n))
	case 7:
		start, n := l.span(600 << 10)
		l.write(l.image, fmt.Sprintf("write -z -u %d %d", start, n))
	case 8:
		start, n := l.span(2 << 20)
		l.write(l.image, fmt.Sprintf("discard %d %d", start, n))
	case 9:
		start, n := l.span(100 << 10) // zeros that no table tells of
		l.write(l.image, fmt.Sprintf("write -P 0 %d %d", start, n))
	case 10:
		// A snapshot: the newest checkpoint's bitmap is in a backing file now.
		l.chain++
		over := fmt.Sprintf("over%d", l.chain)
		cs := 512 << l.rng.IntN(13)
		l.tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", fmt.Sprintf("cluster_size=%d", cs), "-b", l.image, "-F", "qcow2", over)
		l.image = over
	default:
		// A disk is known to have shrunk only if a checkpoint saw it: see
		// checkpoint.
		size := l.size + 512*l.rng.Int64N(1<<20/512)
		l.tool("qemu-img", "resize", "-q", "-f", "qcow2", l.image, strconv.FormatInt(size, 10))
		l.size = size
	}
}

// shrink makes the disk smaller.
func (l *life) shrink() {
	l.t.Helper()
	l.size = max(512, l.size-512*l.rng.Int64N(1<<20/512))
	l.tool("qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", l.image, strconv.FormatInt(l.size, 10))
}

// changes are what an incremental since the last checkpoint has to hold, rounded
// out to clusters.
func (l *life) changes(req backup.Request, cluster int64) []bitmapstore.Run {
	l.t.Helper()
	var runs []bitmapstore.Run
	req.Checkpoint = ""
	_, err := backup.Pull(l.t.Context(), l.repo, req, backup.Hooks{}, func(_ context.Context, disks []backup.OpenDisk) (err error) {
		runs, err = disks[0].Changes.Round(cluster, disks[0].Image.Size()).Collect()
		return err
	})
	l.must(err)
	return runs
}

// checkpoint pushes the disk, as qcow2 and as raw, and looks at what came of it.
func (l *life) checkpoint(n int) {
	l.t.Helper()
	name := fmt.Sprintf("c%d", n)
	req := l.request(l.image)
	out := fmt.Sprintf("push%d", n)
	target := l.targets(qcow2.Qcow2, out)
	cs := int64(0)
	if l.rng.IntN(2) == 0 {
		cs = 512 << l.rng.IntN(13)
		target[0].ClusterSize = cs
	}
	req.Checkpoint = name
	incremental := l.last != ""
	var changes []bitmapstore.Run
	if incremental {
		req.Mode, req.Since = backup.Incremental, l.last
		if cs == 0 {
			cs = l.clusterSize(l.image)
		}
		changes = l.changes(req, cs)
		if l.rng.IntN(2) == 0 {
			target[0].Backing = &qcow2.CreateBacking{File: l.base, Format: qcow2.Qcow2}
		}
		// The same changes, over a raw file that held the disk before.
		raw := req
		raw.Checkpoint = ""
		at := l.targets(qcow2.Raw, "mirror.raw")
		at[0].Reuse = true
		l.push(raw, at, Options{})
		l.same("mirror.raw", qcow2.Raw, l.image, qcow2.Qcow2)
	}
	res := l.push(req, target, Options{Workers: 1 + l.rng.IntN(4)})
	l.clean(out)
	if incremental {
		if target[0].Backing == nil {
			if info := l.tool("qemu-img", "info", out); strings.Contains(info, "backing file") {
				l.t.Fatalf("a backing file: %s", info)
			}
			l.tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", l.base, "-F", "qcow2", out)
		}
		if got := l.allocated(out); fmt.Sprint(got) != fmt.Sprint(changes) {
			l.t.Fatalf("%s holds %v, want %v (cluster size %d)", out, got, changes, cs)
		}
		d := res.Disks[0]
		if n, err := bitmapstore.Of(changes...).Bytes(); err != nil || d.Data+d.Zero != n || d.ClusterSize != cs {
			l.t.Fatalf("result %+v, want %d bytes in clusters of %d (%v)", d, n, cs, err)
		}
	} else {
		at := l.targets(qcow2.Raw, "mirror.raw")
		req.Checkpoint = ""
		l.push(req, at, Options{})
	}
	l.same(out, qcow2.Qcow2, l.image, qcow2.Qcow2)
	l.last, l.base = name, out
	// What this checkpoint was must stay what it is.
	keep := out + ".was"
	l.tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", l.image, keep)
	l.kept = append(l.kept, out)
}

func (l *life) clusterSize(image string) int64 {
	l.t.Helper()
	c, err := qcow2.Open(l.path(image), qcow2.Qcow2, qcow2.OpenOptions{})
	l.must(err)
	defer func() { _ = c.Close() }()
	return c.Layers[0].Header.ClusterSize()
}

// Disks that live at random, over backing chains, with clusters of every size in
// source and target, growing and shrinking: every push of a chain of increments
// reads as the disk did then.
func TestLife(t *testing.T) {
	t.Parallel()
	first, count := uint64(1), 7
	if env := os.Getenv("IMGBACKUP_SEED"); env != "" {
		n, err := strconv.ParseUint(env, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		first, count = n, 1
	}
	if env := os.Getenv("IMGBACKUP_SOAK"); env != "" {
		n, err := strconv.Atoi(env)
		if err != nil {
			t.Fatal(err)
		}
		count *= n
	}
	for i := range count {
		seed := first + uint64(i)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 0))
			l := &life{lab: newLab(t), rng: rng, image: "disk", size: 512 * (1 + rng.Int64N(4<<20/512))}
			// Small clusters need small disks, or the tests take long.
			cs := 512 << ((seed*2 - 1) % 13)
			l.tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", fmt.Sprintf("cluster_size=%d", cs), "disk", strconv.FormatInt(l.size, 10))
			for range 3 {
				l.happen()
			}
			for n := range 5 {
				l.checkpoint(n)
				if rng.IntN(3) == 0 {
					l.shrink()
					l.checkpoint(n + 100)
				}
				for range 1 + rng.IntN(5) {
					l.happen()
				}
			}
			for _, out := range l.kept {
				l.same(out, qcow2.Qcow2, out+".was", qcow2.Raw)
			}
		})
	}
}
