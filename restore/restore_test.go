// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/qcow2"
)

// checkRestored asserts that a restored target is the model, as QEMU sees it.
func checkRestored(t rapid.TB, path string, format qcow2.Format, model []byte) {
	t.Helper()
	raw := path
	if format == qcow2.Qcow2 {
		raw = path + ".raw"
		out := testkit.Tool(t, "qemu-img", "check", "-f", "qcow2", path)
		if !strings.Contains(out, "No errors were found on the image.") {
			t.Fatalf("qemu-img check: %s", out)
		}
		testkit.Tool(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw)
	}
	got, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, model) {
		i := 0
		for i < min(len(got), len(model)) && got[i] == model[i] {
			i++
		}
		t.Fatalf("%s: the content differs at byte %d (%d bytes, want %d)", path, i, len(got), len(model))
	}
}

// Random lives of two disks: every checkpoint restores to what it was, in both
// formats, verified.
func TestEveryCheckpointRestores(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		r := newTestRepo(t)
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		disks := []*testDisk{
			newTestDisk("vda", 512*rapid.Int64Range(0, 3<<20/512).Draw(t, "size of vda"), rng),
			newTestDisk("vdaa", 512*rapid.Int64Range(0, 1<<20/512).Draw(t, "size of vdaa"), rng),
		}
		cluster := int64(512) << rapid.IntRange(0, 12).Draw(t, "cluster bits")
		type checkpoint struct {
			m      *chain.Manifest
			models [2][]byte
		}
		var all []checkpoint
		for range rapid.IntRange(1, 5).Draw(t, "checkpoints") {
			m := r.archive(t, disks...)
			for i := range m.Disks {
				m.Disks[i].ClusterSize = cluster
			}
			all = append(all, checkpoint{m, [2][]byte{slices.Clone(disks[0].content), slices.Clone(disks[1].content)}})
			for _, d := range disks {
				for range rapid.IntRange(0, 4).Draw(t, "changes") {
					d.live(t, rng)
				}
			}
		}
		dir, err := os.MkdirTemp("", "restore")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		for i, format := range []qcow2.Format{qcow2.Raw, qcow2.Qcow2, qcow2.Qcow2} {
			cp := all[len(all)-1]
			if i >= 2 {
				cp = rapid.SampledFrom(all).Draw(t, "an earlier checkpoint")
			}
			targets, err := TargetsIn(cp.m, nil, dir, format)
			if err != nil {
				t.Fatal(err)
			}
			res, err := Run(context.Background(), r.repo, cp.m, targets, Options{Force: true, Verify: true, Workers: 2})
			if err != nil {
				t.Fatal(err)
			}
			for k, d := range res.Disks {
				if d.Size != int64(len(cp.models[k])) || d.Data+d.Zero != d.Size || !d.Verified {
					t.Fatalf("result %+v", d)
				}
				checkRestored(t, targets[k].Path, format, cp.models[k])
			}
		}
	})
}
