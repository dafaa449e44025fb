// SPDX-License-Identifier: Apache-2.0

package prune

import (
	"errors"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/protocol"
)

// TestTakeOver: a prune of another host that no longer answers, in whatever state its mark
// is, is told of, and gone on with: after a day in which this machine saw the mark
// unchanged, or at once when a person says so. A --dry-run does neither.
func TestTakeOver(t *testing.T) {
	t.Parallel()
	for _, state := range []string{chain.MarkMarked, chain.MarkDeleting} {
		for _, said := range []bool{false, true} {
			w := newSmallWorld(t, 3, 4, 300<<10)
			w.forget(t, w.Repo, 2, 3)
			dead := w.foreignMark(t, state)
			since := time.Hour
			ctx := protocol.WithTest(t.Context(), &protocol.Test{Boot: func() (string, time.Duration) { return "here", since }})
			run := func(o Options) (*Result, error) { return Run(ctx, w.Repo, o) }
			var stands *chain.MarkStandsError
			if _, err := run(Options{}); !errors.As(err, &stands) || stands.Mark.UUID != dead.UUID || stands.Mark.Host.Name != "elsewhere" {
				t.Fatalf("%s: %v", state, err)
			}
			before := objects(t, w.Store)
			o := Options{TakeOver: said}
			dry := o
			dry.DryRun = true
			if _, err := run(dry); err != nil || len(objects(t, w.Store)) != len(before) {
				t.Errorf("%s: a dry run: %v", state, err)
			}
			if !said {
				since += 24*time.Hour - time.Second
				if _, err := run(o); !errors.As(err, &stands) {
					t.Fatalf("%s, a day less a second later: %v", state, err)
				}
				since += time.Second
			}
			result, err := run(o)
			if err != nil || result.Resumed.Total().Objects == 0 {
				t.Fatalf("%s: %+v, %v", state, result, err)
			}
			if m, err := w.Repo.Mark(ctx); err != nil || m.Standing() {
				t.Errorf("%s: %+v, %v", state, m, err)
			}
			w.verify(t, w.Store)
			// It turns out to live.
			if state == chain.MarkDeleting {
				d := &chain.Deleting{Repo: w.Repo, Mark: dead}
				if _, err := d.Batch(ctx, []string{archive.MapKey(w.Checkpoints[1].Disks[0].Maps[0].Name)}); !errors.Is(err, chain.ErrMarkChanged) {
					t.Errorf("it goes on deleting: %v", err)
				}
			} else if _, err := w.Repo.SetDeleting(ctx, dead, &chain.MarkList{}); !errors.Is(err, chain.ErrMarkChanged) {
				t.Errorf("it goes on: %v", err)
			}
			w.verify(t, w.Store)
		}
	}
}

// foreignMark has a prune begun by another host, of which nothing is heard any more.
func (w *world) foreignMark(t *testing.T, state string) *chain.Mark {
	t.Helper()
	crash := &crashing{Store: w.Store, after: 1000}
	h := &hooked{Store: crash, after: func(key string) {
		if m, err := w.Repo.Mark(t.Context()); err == nil && m.State == state {
			crash.end()
		}
	}}
	_, err := Run(t.Context(), w.open(t, h), Options{MaxUnused: Limit{Unlimited: true}, retry: time.Microsecond})
	if !errors.Is(err, errOutage) {
		t.Fatalf("it was not cut off: %v", err)
	}
	m, err := w.Repo.Mark(t.Context())
	if err == nil {
		m, err = w.Repo.ChangeMark(t.Context(), m, func(m *chain.Mark) {
			m.Released, m.Suspected = false, nil
			m.Process = chain.Process{Host: chain.Host{Name: "elsewhere", ID: "other"}, BootID: "its boot", PID: 7, PIDNamespace: "pid:[7]", ProcessStart: 7}
		})
	}
	if err != nil || m.State != state {
		t.Fatalf("%+v, %v", m, err)
	}
	return m
}
