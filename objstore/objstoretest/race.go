// SPDX-License-Identifier: Apache-2.0

package objstoretest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
)

const racers = 16

// race runs f in as many goroutines as there are racers, at once.
func race(f func(i int)) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range racers {
		wg.Go(func() {
			<-start
			f(i)
		})
	}
	close(start)
	wg.Wait()
}

// content of one racer: long enough that a mix of two would show.
func racerContent(i int) string { return strings.Repeat(fmt.Sprintf("%08d", i), 40_000) }

func testCreateRace(t *testing.T, s objstore.Store) {
	for round := range 8 {
		key := fmt.Sprintf("race/new-%d/object", round)
		var errs [racers]error
		race(func(i int) {
			errs[i] = s.Put(t.Context(), key, strings.NewReader(racerContent(i)), objstore.PutOptions{Mode: objstore.Create})
		})
		winner := -1
		for i, err := range errs {
			switch {
			case err == nil && winner >= 0:
				t.Fatalf("round %d: both %d and %d created the object", round, winner, i)
			case err == nil:
				winner = i
			case !errors.Is(err, objstore.ErrExists):
				t.Fatalf("round %d: racer %d: %v, want ErrExists", round, i, err)
			}
		}
		if winner < 0 {
			t.Fatalf("round %d: nobody created the object", round)
		}
		wantContent(t, s, key, racerContent(winner))
	}
}

func testReplaceRace(t *testing.T, s objstore.Store) {
	put(t, s, "race/object", racerContent(0), objstore.Create)
	race(func(i int) {
		if i%2 == 0 {
			if err := s.Put(t.Context(), "race/object", strings.NewReader(racerContent(i)), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
				t.Errorf("racer %d: %v", i, err)
			}
			return
		}
		for range 8 {
			got, err := objstore.ReadAll(t.Context(), s, "race/object", 1<<20)
			if err != nil {
				t.Errorf("reader %d: %v", i, err)
				return
			}
			if want := racerContent(0); len(got) != len(want) || string(got) != strings.Repeat(string(got[:8]), len(got)/8) {
				t.Errorf("reader %d: a mix of objects, %d bytes", i, len(got))
			}
		}
	})
	wantKeys := []string{"race/object"}
	wantList(t, s, "race", wantKeys...)
}

func testCancelled(t *testing.T, s objstore.Store) {
	put(t, s, "there", "x", objstore.Create)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	errs := map[string]error{
		"create":  s.Put(ctx, "new", strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Create}),
		"replace": s.Put(ctx, "there", strings.NewReader("y"), objstore.PutOptions{Mode: objstore.Replace}),
		"delete":  s.Delete(ctx, "there"),
	}
	_, errs["stat"] = s.Stat(ctx, "there")
	_, errs["list"] = list(ctx, s, "")
	_, errs["list nothing"] = list(ctx, s, "none/")
	r, err := s.Get(ctx, "there", 0, -1)
	if err == nil {
		_, err = io.ReadAll(r)
		_ = r.Close()
	}
	errs["get"] = err
	for op, err := range errs {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s with a cancelled context: %v, want context.Canceled", op, err)
		}
	}
	wantAbsent(t, s, "new")
	wantContent(t, s, "there", "x")
}

// cancelBody cancels when its second half is read.
type cancelBody struct {
	size   int64
	cancel func()
}

func (b cancelBody) Size() int64 { return b.size }

func (b cancelBody) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off+int64(len(p)) > b.size/2 {
		b.cancel()
	}
	return len(p), nil
}

func testCancelledPut(t *testing.T, s objstore.Store) {
	put(t, s, "there", "old", objstore.Create)
	for _, size := range []int64{100, 8 << 20} {
		for _, key := range []string{"absent", "there"} {
			ctx, cancel := context.WithCancel(t.Context())
			err := s.Put(ctx, key, cancelBody{size, cancel}, objstore.PutOptions{Mode: objstore.Replace})
			cancel()
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("put of %d bytes that was cancelled: %v, want context.Canceled", size, err)
			}
		}
		wantAbsent(t, s, "absent")
		wantContent(t, s, "there", "old")
		wantList(t, s, "", "there")
	}
}

func testCancelledGet(t *testing.T, s objstore.Store) {
	put(t, s, "large", string(pattern(4<<20)), objstore.Create)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, err := s.Get(ctx, "large", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.ReadAll(r); !errors.Is(err, context.Canceled) {
		t.Errorf("reading on after a cancel: %v, want context.Canceled", err)
	}
	_ = r.Close()
}

func testCancelledList(t *testing.T, s objstore.Store) {
	for i := range 20 {
		put(t, s, fmt.Sprintf("k%d/object", i), "", objstore.Create)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	var last error
	for _, err := range s.List(ctx, "") {
		if last != nil {
			t.Fatalf("a listing went on after %v", last)
		}
		if last = err; err == nil {
			n++
		}
		if n == 3 {
			cancel()
		}
	}
	if !errors.Is(last, context.Canceled) {
		t.Errorf("a cancelled listing of 20 objects ended after %d with %v", n, last)
	}
}
