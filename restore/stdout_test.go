// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
)

// failing is a writer that is full after some bytes.
type failing struct{ left int }

func (f *failing) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, io.ErrShortWrite
	}
	return len(p), nil
}

func toStdout(disk string) []Target { return []Target{{disk, Stdout, qcow2.Raw}} }

func TestStdout(t *testing.T) {
	t.Parallel()
	r := newTestRepo(t)
	d := newTestDisk("vda", 30<<20+512, rand.New(rand.NewPCG(9, 9)))
	d.write(3<<20, 14<<20, nil)
	m := r.archive(t, d)
	var all bytes.Buffer
	var events []Event
	res, err := Run(t.Context(), r.repo, m, toStdout("vda"), Options{Stdout: &all, Progress: func(e Event) { events = append(events, e) }})
	if err != nil || !bytes.Equal(all.Bytes(), d.content) {
		t.Fatalf("%d bytes, %v", all.Len(), err)
	}
	if got := res.Disks[0]; got.Path != Stdout || got.Size != d.size() || got.Data+got.Zero != d.size() || got.Zero == 0 {
		t.Errorf("result %+v", got)
	}
	last := events[len(events)-1]
	if events[0].Done != 0 || last.Done != d.size() || last.Total != d.size() || last.DiskDone != d.size() || last.Phase != Writing {
		t.Errorf("from %+v to %+v", events[0], last)
	}
	// A disk of no bytes is nothing.
	none := newTestDisk("vdb", 0, nil)
	if _, err := Run(t.Context(), r.repo, r.archive(t, none), toStdout("vdb"), Options{Stdout: &failing{}}); err != nil {
		t.Error(err)
	}
}

// Whatever ends a stream early is told, and of which disk.
func TestStdoutEnds(t *testing.T) {
	t.Parallel()
	r := newTestRepo(t)
	d := newTestDisk("vda", 30<<20, rand.New(rand.NewPCG(9, 9)))
	m := r.archive(t, d)
	var at *chain.DiskError
	_, err := Run(t.Context(), r.repo, m, toStdout("vda"), Options{Stdout: &failing{9 << 20}})
	if !errors.Is(err, io.ErrShortWrite) || !errors.As(err, &at) || at.Disk != "vda" || !strings.Contains(err.Error(), "not complete") {
		t.Errorf("a full writer: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := Run(ctx, r.repo, m, toStdout("vda"), Options{Stdout: io.Discard, Progress: func(e Event) {
		if e.Done > 0 {
			cancel()
		}
	}}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	packs := r.objects(t, archive.PackPrefix)
	if err := r.store.Delete(t.Context(), packs[len(packs)-1]); err != nil {
		t.Fatal(err)
	}
	var damage *DamageError
	_, err = Run(t.Context(), r.repo, m, toStdout("vda"), Options{Stdout: io.Discard})
	if !errors.As(err, &damage) || damage.Disk != "vda" || damage.End <= damage.Start || !archive.IsDamage(err) {
		t.Errorf("damaged: %v", err)
	}
}

func TestStdoutRefusals(t *testing.T) {
	t.Parallel()
	r, m, _ := twoDisks(t)
	var out bytes.Buffer
	for what, c := range map[string]struct {
		targets []Target
		o       Options
	}{
		"two":         {targets: append(toStdout("vda"), toStdout("vdb")...), o: Options{Stdout: &out}},
		"with a file": {targets: append(toStdout("vda"), Target{"vdb", filepath.Join(t.TempDir(), "x"), qcow2.Raw}), o: Options{Stdout: &out}},
		"qcow2":       {targets: []Target{{"vda", Stdout, qcow2.Qcow2}}, o: Options{Stdout: &out}},
		"vmdk":        {targets: []Target{{"vda", Stdout, "vmdk"}}, o: Options{Stdout: &out}},
		"verify":      {targets: toStdout("vda"), o: Options{Stdout: &out, Verify: true}},
		"continue":    {targets: toStdout("vda"), o: Options{Stdout: &out, Continue: true}},
		"force":       {targets: toStdout("vda"), o: Options{Stdout: &out, Force: true}},
		"nowhere":     {targets: toStdout("vda")},
	} {
		if _, err := Run(t.Context(), r.repo, m, c.targets, c.o); !errors.Is(err, usage.ErrWrong) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if out.Len() > 0 {
		t.Errorf("%d bytes were written", out.Len())
	}
}
