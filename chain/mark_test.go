// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
)

func packKeys(n int) []string {
	var keys []string
	for i := range n {
		keys = append(keys, archive.PackKey(digest(fmt.Sprint("pack ", i))))
	}
	slices.Sort(keys)
	return keys
}

func testMarkList(n int) *MarkList {
	return &MarkList{Objects: packKeys(n), Census: []string{ManifestKey("db", "a"), ManifestKey("web", "a"), ManifestKey("web", "b")}}
}

// TestMark is the life of a mark, and who is too late at each step.
func TestMark(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	if _, err := r.Mark(t.Context()); !errors.Is(err, ErrNoMark) {
		t.Fatal(err)
	}
	list := testMarkList(5)
	m, err := r.CreateMark(t.Context(), list)
	if err != nil {
		t.Fatal(err)
	}
	var stands *MarkStandsError
	if _, err := r.CreateMark(t.Context(), list); !errors.As(err, &stands) || stands.Mark.UUID != m.UUID {
		t.Errorf("a second mark: %v", err)
	}
	if got, err := r.MarkList(t.Context(), m); err != nil || !reflect.DeepEqual(got, list) {
		t.Errorf("%+v, %v", got, err)
	}
	lease := testLease(t)
	if err := r.PutLease(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	listed, err := r.ListLeases(t.Context(), m)
	if err != nil || !listed.Listed || len(listed.Leases) != 1 || listed.Leases[0].Key != lease.Key() || listed.Revision != m.Revision+1 {
		t.Fatalf("%+v, %v", listed, err)
	}
	struck, err := r.Strike(t.Context(), listed, []string{list.Objects[3], list.Objects[1], list.Objects[3]})
	if err != nil || !slices.Equal(struck.Struck, []string{list.Objects[1], list.Objects[3]}) {
		t.Fatalf("%+v, %v", struck, err)
	}
	rest := &MarkList{Objects: []string{list.Objects[0], list.Objects[2]}}
	if _, err := r.SetDeleting(t.Context(), listed, rest); !errors.Is(err, ErrMarkChanged) {
		t.Errorf("deleting what was struck meanwhile: %v", err)
	}
	if _, err := r.SetDeleting(t.Context(), struck, list); err == nil {
		t.Error("what was struck was set to be deleted")
	}
	theirs, err := r.TakeOver(t.Context(), struck)
	if err != nil || theirs.Owner == struck.Owner || theirs.UUID != m.UUID {
		t.Fatalf("%+v, %v", theirs, err)
	}
	if _, err := r.SetDeleting(t.Context(), struck, rest); !errors.Is(err, ErrMarkChanged) {
		t.Errorf("deleting by who was taken for dead: %v", err)
	}
	deleting, err := r.SetDeleting(t.Context(), theirs, rest)
	if err != nil || deleting.State != MarkDeleting || len(deleting.Struck) != 0 {
		t.Fatalf("%+v, %v", deleting, err)
	}
	if _, err := r.Strike(t.Context(), deleting, packKeys(1)); err == nil {
		t.Error("it was struck from what is being deleted")
	}
	if _, err := r.Strike(t.Context(), theirs, packKeys(1)); !errors.Is(err, ErrMarkChanged) {
		t.Errorf("too late: %v", err)
	}
	done, err := r.EndMark(t.Context(), deleting)
	if err != nil || done.Standing() {
		t.Fatal(err)
	}
	if _, err := r.EndMark(t.Context(), theirs); !errors.Is(err, ErrMarkChanged) {
		t.Errorf("ended by who has not seen that it is deleting: %v", err)
	}
	next, err := r.CreateMark(t.Context(), list)
	if err != nil || next.UUID == m.UUID {
		t.Fatalf("the next prune: %v", err)
	}
	if now, err := r.Mark(t.Context()); err != nil || !reflect.DeepEqual(now, next) {
		t.Errorf("%+v, %v", now, err)
	}
	put(t, r.Store, MarkListKey(next.List.Name), []byte("x"))
	if _, err := r.MarkList(t.Context(), next); !archive.IsDamage(err) {
		t.Errorf("a damaged list: %v", err)
	}
	put(t, r.Store, MarkKey, []byte("x"))
	if _, err := r.Mark(t.Context()); !archive.IsDamage(err) {
		t.Errorf("a damaged mark: %v", err)
	}
}

// TestStrikeAll: who needs more than a mark has room for ends it.
func TestStrikeAll(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	m, err := r.CreateMark(t.Context(), testMarkList(2))
	if err != nil {
		t.Fatal(err)
	}
	m, err = r.Strike(t.Context(), m, packKeys(maxStruck+1))
	if err != nil || m.Standing() || len(m.Struck) != 0 {
		t.Errorf("%v, %v", m, err)
	}
}

func TestMarkListRefused(t *testing.T) {
	t.Parallel()
	keys := packKeys(2)
	for name, l := range map[string]*MarkList{
		"order":    {Objects: []string{keys[1], keys[0]}},
		"twice":    {Objects: []string{keys[0], keys[0]}},
		"config":   {Objects: []string{ConfigKey}},
		"manifest": {Objects: []string{ManifestKey("web", "one")}},
		"census":   {Census: keys},
		"mark":     {Objects: []string{MarkKey}},
	} {
		if _, err := encodeMarkList(l); err == nil {
			t.Errorf("%s: it was written", name)
		}
	}
	older := MarkListKey(digest("older"))
	if _, err := encodeMarkList(&MarkList{Objects: []string{older}}); err != nil {
		t.Errorf("an older list: %v", err)
	}
}

// FuzzMarkList: what is read is as it is written.
func FuzzMarkList(f *testing.F) {
	for _, l := range []*MarkList{{}, testMarkList(3), {Objects: packKeys(1)}} {
		data, err := encodeMarkList(l)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
		f.Add(data[:len(data)-1])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var l MarkList
		err := decodeMarkList(data, func(line markLine) bool {
			if line.object {
				l.Objects = append(l.Objects, line.key)
			} else {
				l.Census = append(l.Census, line.key)
			}
			return true
		})
		if err != nil {
			return
		}
		again, err := encodeMarkList(&l)
		if err != nil {
			t.Fatalf("what was read can't be written: %v", err)
		}
		var lines int
		if err := decodeMarkList(again, func(markLine) bool { lines++; return true }); err != nil || lines != len(l.Objects)+len(l.Census) {
			t.Fatalf("%d lines, %v", lines, err)
		}
	})
}
