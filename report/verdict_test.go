// SPDX-License-Identifier: Apache-2.0

package report

import (
	"slices"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/retention"
)

// TestVerdict: bitmaps alone make no backup newer; a drill that failed is not undone by
// one of another checkpoint, nor is lost data by a newer backup.
func TestVerdict(t *testing.T) {
	t.Parallel()
	at := func(days int) time.Time { return now.Add(-time.Duration(days) * day) }
	archive := func(name string, days int) *Checkpoint {
		return &Checkpoint{Checkpoint: name, Created: at(days), Kind: chain.KindArchive}
	}
	bitmap := &Checkpoint{Checkpoint: "bitmap", Created: at(0), Kind: chain.KindCheckpoint}
	good := Drill{Checkpoint: "a", Begun: at(1), Verdict: "passed"}
	failed, lost := archive("b", 1), archive("old", 9)
	failed.Drilled, lost.LostBytes = "failed", 1
	for name, c := range map[string]struct {
		all    []*Checkpoint
		drills []Drill
		want   []string
		newest string
	}{
		"well":         {all: []*Checkpoint{archive("a", 1)}, drills: []Drill{good}, newest: "a"},
		"only bitmaps": {all: []*Checkpoint{bitmap}, want: []string{"empty"}},
		"a bitmap":     {all: []*Checkpoint{archive("a", 8), bitmap}, drills: []Drill{good}, want: []string{"late"}, newest: "a"},
		"drill failed": {
			all: []*Checkpoint{archive("a", 2), failed}, want: []string{"drill"}, newest: "b",
			drills: []Drill{{Checkpoint: "b", Begun: at(1), Verdict: "failed"}, good},
		},
		"an old one lost data": {all: []*Checkpoint{lost, archive("a", 1)}, drills: []Drill{good}, want: []string{"lost"}, newest: "a"},
	} {
		d := &Domain{Domain: "web", Checkpoints: c.all, Drills: c.drills}
		if n := d.newest(); n != nil {
			d.Newest, d.NewestAge = n.Checkpoint, int64(now.Sub(n.Created)/time.Second)
		}
		d.judge(Options{Now: now, MaxAge: 3 * day})
		var got []string
		for _, r := range d.Verdict.Reasons {
			got = append(got, r.Code)
		}
		if !slices.Equal(got, c.want) || d.Newest != c.newest || len(c.want) > 0 != (d.Verdict.Level == Bad) {
			t.Errorf("%s: newest %q, %+v, want %q", name, d.Newest, d.Verdict, c.want)
		}
	}
}

// TestDrilledStays: what forget keeps because it was drilled, the report says to stay.
func TestDrilledStays(t *testing.T) {
	t.Parallel()
	d := &Domain{Drills: []Drill{{Checkpoint: "a", Verdict: "passed"}, {Checkpoint: "a", Verdict: "incomplete"}, {Checkpoint: "b", Verdict: "failed"}}}
	for i, name := range []string{"a", "b", "c"} {
		d.Checkpoints = append(d.Checkpoints, &Checkpoint{Checkpoint: name, Created: now.Add(time.Duration(i-3) * day), Kind: chain.KindArchive})
	}
	if err := d.retain(Options{Now: now, Zone: time.UTC, Rules: retention.Rules{Drilled: 1, Last: 1}}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(d.Retention.Gone, []string{"b"}) {
		t.Errorf("%+v", d.Retention)
	}
}
