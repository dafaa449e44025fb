// SPDX-License-Identifier: Apache-2.0

package objstore_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
)

func TestSingleWriter(t *testing.T) {
	t.Parallel()
	// All but what it can't do: let one of several writers win.
	s := objstore.SingleWriter(objstoretest.NewFaulty(t, objstore.NewMem()))
	for _, want := range []error{nil, objstore.ErrExists, objstore.ErrExists} {
		if err := s.Put(t.Context(), "a", strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Create}); !errors.Is(err, want) {
			t.Errorf("create: %v, want %v", err, want)
		}
	}
	if err := s.Put(t.Context(), "a", strings.NewReader("y"), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
		t.Error(err)
	}
	outage := errors.New("outage")
	s = objstore.SingleWriter(objstoretest.NewFaulty(t, objstore.NewMem(), objstoretest.Fault{Op: objstoretest.Stat, Err: outage}))
	if err := s.Put(t.Context(), "a", strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Create}); !errors.Is(err, outage) {
		t.Errorf("create while it can't be known what stands there: %v", err)
	}
}
