// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/qemu"
	"github.com/imgbackup/imgbackup/restore"
)

// fragmented is a history whose newest checkpoint has parts of chunks, too.
func fragmented(t *testing.T) *chaintest.History {
	h := grown(t, 3)
	r := rand.New(rand.NewPCG(7, 8))
	for i := range int64(8) {
		content := slices.Clone(h.Want[len(h.Want)-1])
		at := i*640<<10 + 20<<10
		chaintest.Fill(r, content[at:at+4<<10])
		h.Commit(content, false, []chaintest.Change{{Start: at, End: at + 4<<10}})
	}
	return h
}

// TestImageFetchesNothing: what qemu-img is served to compare with comes from what was
// restored, parts of chunks as well, so that no chunk is fetched twice.
func TestImageFetchesNothing(t *testing.T) {
	t.Parallel()
	h := fragmented(t)
	reads := func(second bool) int64 {
		d := begin(t, h.Repo)
		steps := d.Data(true)
		want := "passed chunks=passed restore=passed"
		if second {
			steps, want = append(steps, Image()), want+" image=passed"
		}
		to := target(h, steps...)
		to.Whole = false
		before := h.Store.Read()
		if r, err := d.Run(t.Context(), to); err != nil || outcome(r) != want {
			t.Fatalf("%v, %s: %v", err, outcome(r), r.Steps)
		}
		return h.Store.Read() - before
	}
	alone, both := reads(false), reads(true)
	if alone != both || alone > 8*mib {
		t.Errorf("%d bytes were read to restore 6 MiB, and with image %d", alone, both)
	}
}

// between runs the steps chunks, restore and image, and something between the writing and
// the reading back.
func between(t *testing.T, d *Drill, to *Target, what func(path string)) *record.Record {
	t.Helper()
	data := d.Data(true)
	to.Whole = false
	to.Steps = []Step{stub{record.StepChunks, func(ctx context.Context, s *Subject) (Result, error) {
		res, err := data[0].Run(ctx, s)
		if err == nil {
			what(filepath.Join(d.folder.Path(), "restored", "vda.qcow2"))
		}
		return res, err
	}}, data[1], Image()}
	r, err := d.Run(t.Context(), to)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestWhatIsWrittenWrong: wherever what was written is not what was to be, the restore has
// failed; where only qemu-img says so, the image has; where it cannot be asked, we read.
func TestWhatIsWrittenWrong(t *testing.T) {
	t.Parallel()
	h := fragmented(t)
	last := &h.Checkpoints[len(h.Checkpoints)-1].Disks[0]
	maps, err := newProver(h.Repo).open(t.Context(), last, len(last.Maps))
	if err != nil {
		t.Fatal(err)
	}
	// In a whole chunk, in a part of one, and where zeros belong.
	var places []int64
	kinds := make(map[string]bool)
	for e, err := range archive.Replay(t.Context(), maps, 0, last.Size) {
		if err != nil {
			t.Fatal(err)
		}
		kind := "whole"
		if e.Zero {
			kind = "zeros"
		} else if e.ChunkOffset > 0 {
			kind = "part"
		}
		if !kinds[kind] {
			kinds[kind] = true
			places = append(places, e.Offset+e.Length/2)
		}
	}
	if len(places) != 3 {
		t.Fatalf("there are only %v", kinds)
	}
	for _, at := range places {
		r := between(t, begin(t, h.Repo), target(h), func(path string) {
			testkit.Tool(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -P 77 %d 512", at/512*512), path)
		})
		if got := outcome(r); got != "failed chunks=passed restore=failed image=skipped" {
			t.Errorf("at %d: %s: %v", at, got, r.Steps)
		}
	}
	for script, want := range map[string]string{
		"case $1 in compare) echo differs; exit 1;; esac; exec qemu-img \"$@\"": "failed chunks=passed restore=passed image=failed",
		"case $1 in check) echo no >&2; exit 1;; esac; exec qemu-img \"$@\"":    "incomplete chunks=passed restore=passed image=skipped",
		"exit 1": "incomplete chunks=passed restore=passed image=skipped",
		"case $1 in map) qemu-img \"$@\" | sed 's/\"offset\": /&1/';; *) exec qemu-img \"$@\";; esac": "failed chunks=passed restore=passed image=failed",
		"case $1 in map) echo '[]';; *) exec qemu-img \"$@\";; esac":                                  "failed chunks=passed restore=passed image=failed",
		"case $1 in map) echo no >&2; exit 1;; *) exec qemu-img \"$@\";; esac":                        "incomplete chunks=passed restore=passed image=skipped",
	} {
		d := begin(t, h.Repo)
		d.img = qemu.Img{Program: filepath.Join(t.TempDir(), "qemu-img")}
		testkit.Program(t, d.img.Program, "#!/bin/sh\n"+script+"\n")
		r := between(t, d, target(h), func(string) {})
		if got := outcome(r); got != want {
			t.Errorf("%s: %s: %v", script, got, r.Steps)
		}
	}
}

// TestFileReadBackWrong: a file beside the disks that reads back otherwise ends a restore before
// any disk was fetched: no chunk has passed because of it, of this checkpoint or another.
func TestFileReadBackWrong(t *testing.T) {
	t.Parallel()
	h := grown(t, 2)
	d := begin(t, h.Repo)
	d.restore = func(context.Context, *chain.Repository, *chain.Manifest, []restore.Target, restore.Options) (*restore.Result, error) {
		return nil, &restore.VerifyError{Disk: "nvram", What: "it has another SHA-256"}
	}
	before := h.Store.Read()
	r, err := d.Run(t.Context(), target(h, d.Data(true)...))
	if err != nil || outcome(r) != "failed chunks=passed restore=failed" || h.Store.Read()-before < 6*mib {
		t.Errorf("%v, %s after %d bytes", err, outcome(r), h.Store.Read()-before)
	}
}
