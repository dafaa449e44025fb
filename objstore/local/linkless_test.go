// SPDX-License-Identifier: Apache-2.0

package local_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
)

// A file system without hard links will do, if it can rename without replacing; one
// that can't either is told, and is fit for a single writer.
func TestLinkless(t *testing.T) {
	t.Parallel()
	for _, rename := range []bool{true, false} {
		dir := t.TempDir()
		s := newLocal(t, dir)
		asked := s.Linkless(rename)
		err := s.Probe(t.Context())
		put := s.Put(t.Context(), "a/object", strings.NewReader("x"), objstore.PutOptions{})
		if links, renames := asked(); links != 2 || renames != 2 {
			t.Errorf("asked for %d links and %d renames, want 2 and 2", links, renames)
		}
		if names := temps(t, dir); len(names) != 0 {
			t.Errorf("left in tmp: %q", names)
		}
		if rename {
			if err != nil || put != nil {
				t.Errorf("without hard links: probe %v, put %v", err, put)
			}
			continue
		}
		for _, err := range []error{err, put} {
			if !errors.As(err, new(*objstore.NoConditionsError)) || !strings.Contains(err.Error(), "neither hard links") ||
				!strings.Contains(err.Error(), "RENAME_NOREPLACE") || strings.Contains(err.Error(), "this user may not") {
				t.Errorf("without both: %v", err)
			}
		}
		single := objstore.SingleWriter(s)
		for _, want := range []error{nil, objstore.ErrExists} {
			if err := single.Put(t.Context(), "b", strings.NewReader("x"), objstore.PutOptions{}); !errors.Is(err, want) {
				t.Errorf("by a single writer: %v, want %v", err, want)
			}
		}
	}
}

func TestProbe(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := newLocal(t, dir)
	if err := s.Probe(t.Context()); err != nil {
		t.Error(err)
	}
	if names := temps(t, dir); len(names) != 0 {
		t.Errorf("left in tmp: %q", names)
	}
	if keys, err := listAll(t.Context(), s, ""); err != nil || len(keys) != 0 {
		t.Errorf("left behind: %q, %v", keys, err)
	}
}
