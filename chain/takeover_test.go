// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/internal/protocol"
	"github.com/imgbackup/imgbackup/objstore"
)

// machine is one that looks at what others do, and its clock, which nobody sets.
type machine struct {
	boot  string
	since time.Duration
}

// on is a context of who runs on the machine.
func (m *machine) on(ctx context.Context) context.Context {
	return protocol.WithTest(ctx, &protocol.Test{
		Boot:  func() (string, time.Duration) { return m.boot, m.since },
		Pause: func(context.Context) error { return errors.New("nothing ends this wait") },
	})
}

// elsewhere is a process of which nothing is known here.
func elsewhere() Process {
	return Process{Host: Host{Name: "elsewhere", ID: "other"}, BootID: "its boot", PID: 7, PIDNamespace: "pid:[7]", ProcessStart: 7}
}

// foreignMark is the mark of a prune on another host.
func foreignMark(t *testing.T, r *Repository, state string) *Mark {
	t.Helper()
	m, err := r.CreateMark(t.Context(), testMarkList(3))
	if err == nil {
		m, err = r.ChangeMark(t.Context(), m, func(m *Mark) {
			m.Process, m.State = elsewhere(), state
			m.Since = time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC) // by a clock that is wrong
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestMarkUnchanged: a mark is another host's until this machine has seen it unchanged for a
// day: by its own clock, on one boot, and without a sign of life of its owner.
func TestMarkUnchanged(t *testing.T) {
	t.Parallel()
	for _, state := range []string{MarkMarked, MarkDeleting} {
		r := newRepository(t)
		m := foreignMark(t, r, state)
		here, there := &machine{boot: "here", since: time.Hour}, &machine{boot: "there", since: 99 * time.Hour}
		ended := func(when string, by *machine, want bool) {
			t.Helper()
			now, err := r.Mark(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			m, got, err := r.MarkEnded(by.on(t.Context()), now)
			if err != nil || got != want {
				t.Errorf("%s, %s: ended is %v, %v", state, when, got, err)
			}
			if got == want && !want && m.Suspected == nil {
				t.Errorf("%s, %s: it is not noted", state, when)
			}
		}
		ended("first seen", here, false)
		here.since += unchangedFor - time.Second
		ended("a day less a second later", here, false)
		here.since += time.Second
		ended("a day later", here, true)
		ended("another machine sees it first", there, false)
		here.since += time.Hour
		ended("and so the first begins anew", here, false)
		here.since += unchangedFor
		now, err := r.Mark(t.Context())
		if err == nil {
			_, err = r.ChangeMark(t.Context(), now, func(*Mark) {}) // its owner
		}
		if err != nil {
			t.Fatal(err)
		}
		ended("the owner lives", here, false)
		here.since = time.Minute
		here.boot = "the next"
		ended("after a restart", here, false)
		here.since += unchangedFor
		ended("a day after that", here, true)
		over, err := r.TakeOver(t.Context(), must(t)(r.Mark(t.Context())))
		if err != nil || over.Owner == m.Owner || over.UUID != m.UUID || over.Suspected != nil || over.State != state {
			t.Errorf("%s: %+v, %v", state, over, err)
		}
		if _, err := r.ChangeMark(t.Context(), m, func(*Mark) {}); !errors.Is(err, ErrMarkChanged) {
			t.Errorf("%s: its owner goes on with it: %v", state, err)
		}
	}
}

// must fails the test on an error.
func must(t *testing.T) func(m *Mark, err error) *Mark {
	return func(m *Mark, err error) *Mark {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
}

// delayed is a store to which requests may arrive late. The first deletes get no answer.
type delayed struct {
	objstore.Store
	unanswered int
	meanwhile  func() // while it is waited for
	asked      []string
}

// Unwrap returns the store below.
func (d *delayed) Unwrap() objstore.Store { return d.Store }

// MaxDelay implements objstore.Delayed.
func (d *delayed) MaxDelay() time.Duration { return 15 * time.Minute }

// DeleteBatch implements objstore.BatchDeleter.
func (d *delayed) DeleteBatch(ctx context.Context, keys []string) error {
	d.asked = append(d.asked, keys...)
	if d.unanswered > 0 {
		d.unanswered--
		d.meanwhile()
		return errors.Join(errors.New("no answer"), ctx.Err())
	}
	return objstore.DeleteEach(ctx, keys, d.Delete)
}

// TestUnanswered: a batch whose answer came too late, or never, may be done later than what
// is stored next. So its mark stays, and is ended when nothing can arrive any more; and a
// batch is not sent again without a look at the mark.
func TestUnanswered(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		takes      time.Duration // to give it up
		unanswered int
		settled    bool
	}{
		"all is answered":      {settled: true},
		"it is sent again":     {takes: time.Second, unanswered: 1},
		"the machine suspends": {takes: time.Hour, unanswered: 1},
		"and once more":        {takes: time.Hour, unanswered: 2},
	} {
		here := &machine{boot: "here", since: time.Hour}
		store := &delayed{Store: objstore.NewMem(), unanswered: c.unanswered}
		store.meanwhile = func() { here.since += c.takes }
		r, err := Init(t.Context(), store, InitOptions{})
		if err != nil {
			t.Fatal(err)
		}
		store.asked = nil
		m := must(t)(r.CreateMark(t.Context(), testMarkList(3)))
		list := &MarkList{Objects: testMarkList(3).Objects}
		for _, key := range list.Objects {
			put(t, r.Store, key, []byte("garbage"))
		}
		m = must(t)(r.SetDeleting(t.Context(), m, list))
		ctx := protocol.WithTest(t.Context(), &protocol.Test{
			Boot:  func() (string, time.Duration) { return here.boot, here.since },
			Pause: func(context.Context) error { return nil },
		})
		d := &Deleting{Repo: r, Mark: m, Now: func() time.Duration { return here.since }}
		refused, err := d.Batch(ctx, list.Objects)
		if err != nil || refused != nil {
			t.Fatalf("%s: %v, %v", name, refused, err)
		}
		settled, err := d.End(ctx)
		if err != nil || settled != c.settled {
			t.Errorf("%s: settled is %v, %v", name, settled, err)
		}
		if c.unanswered > 0 && len(store.asked) <= len(list.Objects) {
			t.Errorf("%s: asked for %q", name, store.asked)
		}
		for _, key := range list.Objects {
			if _, err := store.Stat(ctx, key); !errors.Is(err, objstore.ErrNotFound) {
				t.Errorf("%s: %s: %v", name, key, err)
			}
		}
		now := must(t)(r.Mark(ctx))
		if now.Standing() == c.settled || now.Standing() && (now.State != MarkDeleting || !now.Released) {
			t.Fatalf("%s: %+v", name, now)
		}
		if c.settled {
			continue
		}
		for _, wait := range []time.Duration{0, 15*time.Minute - time.Second} {
			here.since += wait
			if _, ended, err := r.MarkEnded(ctx, must(t)(r.Mark(ctx))); err != nil || ended {
				t.Errorf("%s: %v later it is taken over: %v", name, wait, err)
			}
		}
		here.since += time.Second
		if _, ended, err := r.MarkEnded(ctx, must(t)(r.Mark(ctx))); err != nil || !ended {
			t.Errorf("%s: 15 minutes later it is not taken over: %v", name, err)
		}
		must(t)(r.TakeOver(ctx, must(t)(r.Mark(ctx))))
		if _, err := d.Batch(ctx, list.Objects); !errors.Is(err, ErrMarkChanged) {
			t.Errorf("%s: it deletes under another's mark: %v", name, err)
		}
	}
}

// TestLeaseUnchanged: a lease of another host is broken when it was seen unchanged for a day,
// by one machine on one boot. One that is renewed never is, and neither is one that can't be
// read.
func TestLeaseUnchanged(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	here := &machine{boot: "here", since: time.Hour}
	ctx := here.on(t.Context())
	dead, alive := testLease(t), testLease(t)
	dead.Announces = &Announced{Domain: "web", Checkpoint: "one"}
	for _, l := range []*Lease{dead, alive} {
		l.Process = elsewhere()
		if err := r.PutLease(ctx, l); err != nil {
			t.Fatal(err)
		}
	}
	unread := leaseKey("elsewhere", NewUUID())
	put(t, r.Store, unread, []byte("x"))
	m := must(t)(r.CreateMark(ctx, testMarkList(1)))
	m = must(t)(r.ListLeases(ctx, m))
	await := func(when string, want ...string) {
		t.Helper()
		var left []AwaitedLease
		var err error
		if m, left, err = r.AwaitLeases(ctx, m); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, l := range left {
			got = append(got, l.Key)
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: it waits for %q, want %q", when, got, want)
		}
	}
	await("at once", dead.Key(), alive.Key(), unread)
	for range 23 {
		here.since += time.Hour
		alive.Renewed++
		if err := r.PutLease(ctx, alive); err != nil {
			t.Fatal(err)
		}
		await("renewed", dead.Key(), alive.Key(), unread)
	}
	unchanged, err := r.Unchanged(ctx, []*Lease{dead, alive})
	if err != nil || unchanged[dead.Key()] != 23*time.Hour || unchanged[alive.Key()] != 0 {
		t.Errorf("unchanged: %v, %v", unchanged, err)
	}
	here.since += time.Hour - time.Second
	await("a day less a second", dead.Key(), alive.Key(), unread)
	here.boot, here.since = "the next", 2*unchangedFor
	await("after a restart", dead.Key(), alive.Key(), unread)
	here.since += unchangedFor - time.Second
	alive.Renewed++
	if err := r.PutLease(ctx, alive); err != nil {
		t.Fatal(err)
	}
	await("nearly a day after it", dead.Key(), alive.Key(), unread)
	here.since += time.Second
	await("a day after it", alive.Key(), unread)
	// What the dead one announced it can't commit any more.
	slot, err := r.Slot(ctx, "web", "one")
	if err != nil || slot.Digest() == nil {
		t.Errorf("the commit that was announced is not spent: %+v, %v", slot, err)
	}
	h := &Hold{repo: r, lease: dead, cancel: func(error) {}}
	if err := h.replace(ctx, func(*Lease) {}, nil); !errors.As(err, new(*BrokenError)) {
		t.Errorf("it turns out to live, and renews: %v", err)
	}
}

// TestRely: what is marked is struck when it is needed; what is being deleted is waited for,
// and finished where its prune has certainly ended.
func TestRely(t *testing.T) {
	t.Parallel()
	here := &machine{boot: "here", since: time.Hour}
	list := testMarkList(3)
	needed := list.Objects[1]
	begin := func(t *testing.T, state string) (*Repository, *Hold) {
		t.Helper()
		r := newRepository(t)
		for _, key := range list.Objects {
			put(t, r.Store, key, []byte("garbage"))
		}
		foreignMark(t, r, state)
		h, err := r.Hold(t.Context(), "backup")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = h.Release(context.Background()) }) // the repository goes, too
		return r, h
	}
	t.Run("struck", func(t *testing.T) {
		t.Parallel()
		r, h := begin(t, MarkMarked)
		if !h.Marked(needed) {
			t.Error("it is not known to be marked")
		}
		if err := h.Rely(here.on(t.Context()), needed, ConfigKey); err != nil {
			t.Fatal(err)
		}
		if m := must(t)(r.Mark(t.Context())); !slices.Equal(m.Struck, []string{needed}) || h.Marked(needed) || !h.Marked(list.Objects[0]) {
			t.Errorf("%+v", m)
		}
	})
	t.Run("waited for", func(t *testing.T) {
		t.Parallel()
		r, h := begin(t, MarkDeleting)
		waits := 0
		ctx := protocol.WithTest(t.Context(), &protocol.Test{Pause: func(context.Context) error {
			if waits++; waits < 3 {
				return nil
			}
			_, err := r.EndMark(t.Context(), must(t)(r.Mark(t.Context())))
			return err
		}})
		if err := h.Rely(ctx, needed); err != nil || waits != 3 || h.Marked(needed) {
			t.Errorf("%v after %d waits", err, waits)
		}
	})
	t.Run("for no longer than half an hour", func(t *testing.T) {
		t.Parallel()
		_, h := begin(t, MarkDeleting)
		waits := 0
		ctx := protocol.WithTest(t.Context(), &protocol.Test{Pause: func(context.Context) error { waits++; return nil }})
		err := h.Rely(ctx, needed)
		if err == nil || !strings.Contains(err.Error(), "on host elsewhere (process 7)") || waits != deletingTries {
			t.Errorf("%v after %d waits", err, waits)
		}
	})
	t.Run("finished", func(t *testing.T) {
		t.Parallel()
		r, h := begin(t, MarkDeleting)
		ctx := protocol.WithTest(t.Context(), &protocol.Test{Ended: func(string) bool { return true }})
		if err := h.Rely(ctx, needed); err != nil {
			t.Fatal(err)
		}
		if m := must(t)(r.Mark(ctx)); m.Standing() || m.Host.Name == "elsewhere" {
			t.Errorf("%+v", m)
		}
		for _, key := range list.Objects {
			if _, err := r.Store.Stat(ctx, key); !errors.Is(err, objstore.ErrNotFound) {
				t.Errorf("%s: %v", key, err)
			}
		}
	})
	t.Run("finished by another", func(t *testing.T) {
		t.Parallel()
		r, h := begin(t, MarkDeleting)
		ctx := protocol.WithTest(t.Context(), &protocol.Test{Ended: func(string) bool {
			must(t)(r.EndMark(t.Context(), must(t)(r.Mark(t.Context())))) // just now
			return true
		}})
		if err := h.Rely(ctx, needed); err != nil || h.Marked(needed) {
			t.Error(err)
		}
		if _, err := r.Store.Stat(ctx, needed); err != nil {
			t.Errorf("it was deleted under a mark that is done: %v", err)
		}
	})
	t.Run("refused", func(t *testing.T) {
		t.Parallel()
		r, h := begin(t, MarkDeleting)
		refusing := h.marks.repo.with(refusingDeletes{r.Store})
		h.marks.repo = refusing
		ctx := protocol.WithTest(t.Context(), &protocol.Test{Ended: func(string) bool { return true }})
		if err := h.Rely(ctx, needed); err == nil || !strings.Contains(err.Error(), "finish what a prune was deleting") {
			t.Errorf("it relies on what could not be deleted: %v", err)
		}
	})
}

// refusingDeletes deletes nothing.
type refusingDeletes struct{ objstore.Store }

func (s refusingDeletes) Delete(context.Context, string) error { return errors.New("refused") }
