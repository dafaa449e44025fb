// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/chaintest"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/objstore"
)

func flipByte(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// stub is a step that does what a test says.
type stub struct {
	name string
	run  func(ctx context.Context, s *Subject) (Result, error)
}

func (s stub) Name() string                                         { return s.name }
func (s stub) Run(ctx context.Context, on *Subject) (Result, error) { return s.run(ctx, on) }

// begin begins a run in a folder of its own, which must be empty at the end.
func begin(t *testing.T, repo *chain.Repository) *Drill {
	t.Helper()
	dir := t.TempDir()
	d, err := New(repo, Options{Dir: dir, Tool: "test", Run: chain.NewUUID(), Note: func(string) {}, Told: func(string, int64) {}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%v is left, %v", left, err)
		}
	})
	return d
}

func target(h *chaintest.History, steps ...Step) *Target {
	last := h.Checkpoints[len(h.Checkpoints)-1]
	return &Target{Manifest: last, ChosenBy: "latest", Steps: steps, History: h.Checkpoints, Whole: true}
}

// outcome is a record's verdict and steps.
func outcome(r *record.Record) string {
	all := []string{string(r.Verdict)}
	for _, s := range r.Steps {
		all = append(all, s.Step+"="+string(s.Status))
	}
	return strings.Join(all, " ")
}

// TestVerdicts: what is skipped is no pass, what fails is never overlooked, and what does
// not apply is not missed unless it was asked for.
func TestVerdicts(t *testing.T) {
	t.Parallel()
	h := grown(t, 1)
	ends := func(name string, res Result, err error) Step {
		return stub{name, func(context.Context, *Subject) (Result, error) { return res, err }}
	}
	none := Skip("nothing", "")
	none.NotApplicable = true
	pass, fail, skip := Pass(""), Fail("wrong", "mend it"), Skip("no", "install it")
	for name, c := range map[string]struct {
		steps   []Step
		require []string
		want    string
	}{
		"all pass":                   {[]Step{ends("chunks", pass, nil), ends("boot", pass, nil)}, nil, "passed chunks=passed boot=passed"},
		"one is skipped":             {[]Step{ends("chunks", pass, nil), ends("image", skip, nil)}, nil, "incomplete chunks=passed image=skipped"},
		"boot is":                    {[]Step{ends("chunks", pass, nil), ends("boot", skip, nil)}, nil, "passed chunks=passed boot=skipped"},
		"boot is, and is required":   {[]Step{ends("chunks", pass, nil), ends("boot", skip, nil)}, []string{"boot"}, "incomplete chunks=passed boot=skipped"},
		"what is required is not":    {[]Step{ends("chunks", pass, nil), ends("image", skip, nil)}, []string{"chunks"}, "passed chunks=passed image=skipped"},
		"what was never done":        {[]Step{ends("chunks", pass, nil)}, []string{"files"}, "incomplete chunks=passed"},
		"it fails, and is optional":  {[]Step{ends("chunks", pass, nil), ends("boot", fail, nil)}, nil, "failed chunks=passed boot=failed"},
		"nothing applies":            {[]Step{ends("chunks", pass, nil), ends("source", none, nil)}, nil, "passed chunks=passed source=skipped"},
		"it is asked for":            {[]Step{ends("chunks", pass, nil), ends("source", none, nil)}, []string{"source"}, "incomplete chunks=passed source=skipped"},
		"an error is a skip":         {[]Step{ends("image", pass, errors.New("away"))}, nil, "incomplete image=skipped"},
		"without chunks nothing is":  {[]Step{ends("chunks", pass, errors.New("away")), ends("image", pass, nil)}, nil, "incomplete chunks=skipped image=skipped"},
		"a failure before a skip is": {[]Step{ends("chunks", fail, nil), ends("image", skip, nil)}, nil, "failed chunks=failed image=skipped"},
	} {
		to := target(h, c.steps...)
		to.Require = c.require
		r, err := begin(t, h.Repo).Run(t.Context(), to)
		if err != nil || outcome(r) != c.want {
			t.Errorf("%s: %s, %v", name, outcome(r), err)
		}
		for _, s := range r.Steps {
			if s.Status != record.Passed && s.Reason == "" {
				t.Errorf("%s: step %s has no reason", name, s.Step)
			}
		}
		if _, err := record.Seal(r); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestInterrupted: whichever step is interrupted, the run ends, the record says where, and
// nothing is left.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	h := grown(t, 1)
	why := errors.New("interrupted")
	for at := range 3 {
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		var steps []Step
		for i, name := range []string{record.StepFilesystems, record.StepBoot, record.StepCommand} {
			steps = append(steps, stub{name, func(ctx context.Context, s *Subject) (Result, error) {
				if _, err := s.Serve(ctx); err != nil {
					return Result{}, err
				}
				if err := os.WriteFile(filepath.Join(s.Scratch, "left"), []byte("left"), 0o600); err != nil {
					return Result{}, err
				}
				if i == at {
					cancel(why)
					<-ctx.Done()
					return Result{}, ctx.Err()
				}
				return Pass(""), nil
			}})
		}
		r, err := begin(t, h.Repo).Run(ctx, target(h, steps...))
		if !errors.Is(err, why) || len(r.Steps) != at+1 || r.Verdict != record.VerdictIncomplete {
			t.Errorf("at step %d: %v, %s", at, err, outcome(r))
		}
		if s := r.Steps[at]; s.Status != record.Skipped || s.Reason != "it was interrupted" {
			t.Errorf("at step %d: %v", at, s)
		}
	}
}

// TestScratchIsEmpty: what a step leaves in its folder the next one does not find.
func TestScratchIsEmpty(t *testing.T) {
	t.Parallel()
	h := grown(t, 1)
	var seen []string
	step := func(name string) Step {
		return stub{name, func(_ context.Context, s *Subject) (Result, error) {
			for _, dir := range []string{s.Scratch, s.Keep} {
				entries, err := os.ReadDir(dir)
				if err != nil {
					return Result{}, err
				}
				for _, e := range entries {
					seen = append(seen, name+" found "+e.Name())
				}
				if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
					return Result{}, err
				}
			}
			return Pass(""), nil
		}}
	}
	r, err := begin(t, h.Repo).Run(t.Context(), target(h, step(record.StepFiles), step(record.StepBoot)))
	if err != nil || r.Verdict != record.VerdictPassed || len(seen) > 0 {
		t.Errorf("%v, %s: %v", err, outcome(r), seen)
	}
}

// TestRepackedMeanwhile: a checkpoint that a prune has given other maps is drilled as it is
// by now, and the record has these.
func TestRepackedMeanwhile(t *testing.T) {
	t.Parallel()
	h := grown(t, 3)
	d := begin(t, h.Repo)
	old := h.Checkpoints[3]
	// Restoring to scratch space begins anew, too.
	for _, scratch := range []bool{false, true} {
		steps := d.Data(scratch)
		first := stub{record.StepSource, func(context.Context, *Subject) (Result, error) { return Pass(""), nil }}
		r, err := d.Run(t.Context(), &Target{Manifest: old, ChosenBy: "latest", Steps: append(steps, first), History: h.Checkpoints})
		if err != nil || r.Verdict != record.VerdictPassed {
			t.Fatalf("%v, %s", err, outcome(r))
		}
	}
	repack := stub{record.StepFiles, func(context.Context, *Subject) (Result, error) {
		h.Repack(3)
		h.Prune()
		return Pass(""), nil
	}}
	fresh := begin(t, h.Repo)
	r, err := fresh.Run(t.Context(), &Target{Manifest: old, ChosenBy: "latest", Steps: append([]Step{repack}, fresh.Data(false)...), History: h.Checkpoints})
	if err != nil || r.Verdict != record.VerdictPassed || r.Revision != 2 {
		t.Fatalf("%v, %s, revision %d", err, outcome(r), r.Revision)
	}
	if slices.Equal(r.Disks[0].Maps, []string{old.Disks[0].Maps[0].Name.String()}) || r.Disks[0].Maps[0] == old.Disks[0].Maps[0].Name.String() {
		t.Error("the record has the maps of before")
	}
}

// TestRepackedAfterwards: what a prune has put in the place of chunks that were fetched is not
// said to have been.
func TestRepackedAfterwards(t *testing.T) {
	t.Parallel()
	h := grown(t, 3)
	d := begin(t, h.Repo)
	tries := 0
	repack := stub{record.StepSource, func(ctx context.Context, s *Subject) (Result, error) {
		if tries++; tries > 1 {
			return Pass(""), nil
		}
		h.Repack(3)
		return s.Damage(ctx, archive.Damaged("packs/x", objstore.ErrNotFound))
	}}
	r, err := d.Run(t.Context(), target(h, append(d.Data(false), repack)...))
	if err != nil || r.Verdict != record.VerdictPassed || tries != 2 || r.Revision != 1 {
		t.Fatalf("%v, %s, %d tries, revision %d", err, outcome(r), tries, r.Revision)
	}
	if state, why, err := record.Compare(t.Context(), h.Repo, r); err != nil || state != record.Repacked {
		t.Errorf("%s (%s), %v", state, why, err)
	}
}

// TestForgottenMeanwhile: that is no damage.
func TestForgottenMeanwhile(t *testing.T) {
	t.Parallel()
	h := grown(t, 1)
	d := begin(t, h.Repo)
	other := *h.Checkpoints[1]
	other.UUID = chain.NewUUID()
	to := target(h, d.Data(false)...)
	to.Manifest = &other
	r, err := d.Run(t.Context(), to)
	if err != nil || outcome(r) != "incomplete chunks=skipped restore=skipped" || !strings.Contains(r.Steps[0].WhatToDo, "choose another") {
		t.Errorf("%v, %s: %v", err, outcome(r), r.Steps)
	}
	if _, err := record.Seal(r); err != nil {
		t.Error(err)
	}
}

// TestCompare: a record that was true is told from one that the repository contradicts.
func TestCompare(t *testing.T) {
	t.Parallel()
	h := grown(t, 3)
	d := begin(t, h.Repo)
	r, err := d.Run(t.Context(), &Target{Manifest: h.Checkpoints[3], ChosenBy: "c", Steps: d.Data(false), History: h.Checkpoints})
	if err != nil {
		t.Fatal(err)
	}
	compare := func(r record.Record, want record.State) {
		t.Helper()
		if state, why, err := record.Compare(t.Context(), h.Repo, &r); err != nil || state != want || why == "" {
			t.Errorf("%s (%s), %v: want %s", state, why, err, want)
		}
	}
	compare(*r, record.Stands)
	other := *r
	other.Manifest = strings.Repeat("0", 64)
	compare(other, record.Contradict)
	other.RepositoryID = chain.NewUUID()
	compare(other, record.Copied)
	other.Disks = slices.Clone(r.Disks)
	other.Disks[0].Maps = slices.Repeat([]string{strings.Repeat("1", 64)}, len(r.Disks[0].Maps))
	compare(other, record.Repacked)
	other.Disks[0].Size++
	compare(other, record.Contradict)
	other.CheckpointUUID = chain.NewUUID()
	compare(other, record.Forgotten)
	h.Repack(3)
	compare(*r, record.Repacked)
	grew := *r
	grew.Disks = slices.Clone(r.Disks)
	grew.Disks[0].Size++
	compare(grew, record.Contradict)
}
