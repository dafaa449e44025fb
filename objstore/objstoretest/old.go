// SPDX-License-Identifier: Apache-2.0

package objstoretest

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/objstore"
)

func instead(old string) objstore.PutOptions {
	return objstore.PutOptions{Mode: objstore.Replace, Old: []byte(old)}
}

// testReplaceOld: only what holds the very bytes is replaced.
func testReplaceOld(t *testing.T, s objstore.Store) {
	for _, old := range []string{"", "x"} {
		if err := s.Put(t.Context(), "a", strings.NewReader("new"), instead(old)); !errors.Is(err, objstore.ErrChanged) {
			t.Errorf("instead of %q, which is absent: %v, want ErrChanged", old, err)
		}
	}
	wantAbsent(t, s, "a")
	put(t, s, "a", "first", objstore.Create)
	for _, old := range []string{"", "firs", "firsT", "first ", "second"} {
		if err := s.Put(t.Context(), "a", strings.NewReader("new"), instead(old)); !errors.Is(err, objstore.ErrChanged) {
			t.Errorf("instead of %q: %v, want ErrChanged", old, err)
		}
		wantContent(t, s, "a", "first")
	}
	for _, step := range []struct{ old, new string }{{"first", "second"}, {"second", ""}, {"", "last"}, {"last", "last"}} {
		if err := s.Put(t.Context(), "a", strings.NewReader(step.new), instead(step.old)); err != nil {
			t.Errorf("%q instead of %q: %v", step.new, step.old, err)
		}
		wantContent(t, s, "a", step.new)
	}
	if err := s.Put(t.Context(), "b", strings.NewReader("x"), objstore.PutOptions{Old: []byte("y")}); err == nil || errors.Is(err, objstore.ErrChanged) {
		t.Errorf("create, instead of something: %v, want it refused", err)
	}
	wantAbsent(t, s, "b")
}

// testReplaceOldRace: of several who have read the same bytes one replaces them;
// who replaces or removes them without having read them is not replaced either.
func testReplaceOldRace(t *testing.T, s objstore.Store) {
	for round := range 4 {
		key := fmt.Sprintf("race/swap-%d/object", round)
		put(t, s, key, "old", objstore.Create)
		var errs [racers]error
		race(func(i int) {
			errs[i] = s.Put(t.Context(), key, strings.NewReader(racerContent(i)), instead("old"))
		})
		winner := -1
		for i, err := range errs {
			switch {
			case err == nil && winner >= 0:
				t.Fatalf("round %d: both %d and %d replaced the object", round, winner, i)
			case err == nil:
				winner = i
			case !errors.Is(err, objstore.ErrChanged):
				t.Fatalf("round %d: racer %d: %v, want ErrChanged", round, i, err)
			}
		}
		if winner < 0 {
			t.Fatalf("round %d: nobody replaced the object", round)
		}
		wantContent(t, s, key, racerContent(winner))

		// The last word has who did not ask.
		race(func(i int) {
			switch {
			case i == 0:
				put(t, s, key, "unasked", objstore.Replace)
			case i%2 == 1:
				_ = s.Put(t.Context(), key, strings.NewReader("swapped"), instead(racerContent(winner)))
			}
		})
		wantContent(t, s, key, "unasked")
	}
}

// testRetention: an object is kept for a time, or it is told that it isn't.
func testRetention(t *testing.T, s objstore.Store) {
	for key, how := range map[string]objstore.Retention{"a": objstore.Compliance, "b": objstore.Governance} {
		err := s.Put(t.Context(), key, strings.NewReader("x"), objstore.PutOptions{RetainUntil: time.Now().Add(time.Hour), Retention: how})
		var unsupported *objstore.UnsupportedError
		switch {
		case err == nil:
			wantContent(t, s, key, "x")
		case !errors.As(err, &unsupported) || !errors.Is(err, errors.ErrUnsupported) || !objstore.Permanent(err):
			t.Errorf("an object that is to be kept: %v, want an UnsupportedError", err)
		}
	}
}
