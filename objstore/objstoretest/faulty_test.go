// SPDX-License-Identifier: Apache-2.0

package objstoretest_test

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
)

func TestFaultyWithoutFaults(t *testing.T) {
	t.Parallel()
	objstoretest.Run(t, func(t *testing.T) objstore.Store {
		return objstoretest.NewFaulty(t, objstore.NewMem())
	})
}

func TestFaulty(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	outage := errors.New("outage")
	mem := objstore.NewMem()
	hooked := ""
	s := objstoretest.NewFaulty(t, mem,
		objstoretest.Fault{Op: objstoretest.Put, Prefix: "lost/", Times: 1, Err: outage, Lost: true},
		objstoretest.Fault{Op: objstoretest.Put, Prefix: "second/", After: 1, Times: 1, Err: outage, Hook: func(key string) { hooked = key }},
		objstoretest.Fault{Op: objstoretest.Get, Prefix: "cut", Cut: 3, Err: outage},
		objstoretest.Fault{Op: objstoretest.List, Cut: 2, Err: outage},
		objstoretest.Fault{Op: objstoretest.Delete, Err: outage, Lost: true, Times: 1},
		objstoretest.Fault{Op: objstoretest.Stat, Prefix: "down", Err: outage},
	)
	put := func(key string) error {
		return s.Put(ctx, key, strings.NewReader("content"), objstore.PutOptions{Mode: objstore.Create})
	}
	if err := put("lost/a"); !errors.Is(err, outage) {
		t.Errorf("put with a lost answer: %v", err)
	}
	if err := put("lost/a"); !errors.Is(err, objstore.ErrExists) {
		t.Errorf("the object whose answer was lost is not there: %v", err)
	}
	for i, want := range []error{nil, outage, nil} {
		if err := put("second/" + string(rune('a'+i))); !errors.Is(err, want) || (want == nil) != (err == nil) {
			t.Errorf("put %d: %v, want %v", i, err, want)
		}
	}
	if hooked != "second/b" {
		t.Errorf("the hook saw %q", hooked)
	}
	if _, err := s.Stat(ctx, "down"); !errors.Is(err, outage) || errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("stat: %v", err)
	}
	if err := put("cut"); err != nil {
		t.Fatal(err)
	}
	r, err := s.Get(ctx, "cut", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); string(got) != "con" || !errors.Is(err, outage) {
		t.Errorf("a cut read: %q, %v", got, err)
	}
	n := 0
	for _, err := range s.List(ctx, "") {
		if err == nil {
			n++
		} else if !errors.Is(err, outage) {
			t.Error(err)
		}
	}
	if n != 2 {
		t.Errorf("a cut listing showed %d objects", n)
	}
	if err := s.Delete(ctx, "cut"); !errors.Is(err, outage) {
		t.Errorf("delete with a lost answer: %v", err)
	}
	if _, err := mem.Stat(ctx, "cut"); !errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("the object was not deleted: %v", err)
	}
	if got := s.Count(objstoretest.Put); got != 6 {
		t.Errorf("%d puts counted", got)
	}
	if got := s.Count(); got != 10 {
		t.Errorf("%d operations counted", got)
	}
}

// recorder is a test that only takes note of failing.
type recorder struct {
	testing.TB
	cleanup func()
	failed  bool
}

func (r *recorder) Helper()               {}
func (r *recorder) Cleanup(f func())      { r.cleanup = f }
func (r *recorder) Errorf(string, ...any) { r.failed = true }

func TestFaultyMustBeHit(t *testing.T) {
	t.Parallel()
	for _, hit := range []bool{true, false} {
		r := &recorder{TB: t}
		s := objstoretest.NewFaulty(r, objstore.NewMem(), objstoretest.Fault{Op: objstoretest.Stat, Err: io.ErrClosedPipe})
		if hit {
			if _, err := s.Stat(t.Context(), "a"); !errors.Is(err, io.ErrClosedPipe) {
				t.Error(err)
			}
		}
		r.cleanup()
		if r.failed == hit {
			t.Errorf("hit %v: failed %v", hit, r.failed)
		}
	}
}
