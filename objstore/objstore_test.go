// SPDX-License-Identifier: Apache-2.0

package objstore_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
)

func TestMem(t *testing.T) {
	t.Parallel()
	objstoretest.Run(t, func(*testing.T) objstore.Store { return objstore.NewMem() })
}

func TestReadAllIsBounded(t *testing.T) {
	t.Parallel()
	s := objstore.NewMem()
	if err := s.Put(t.Context(), "a", strings.NewReader("0123456789"), objstore.PutOptions{Mode: objstore.Create}); err != nil {
		t.Fatal(err)
	}
	if got, err := objstore.ReadAll(t.Context(), s, "a", 10); err != nil || string(got) != "0123456789" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := objstore.ReadAll(t.Context(), s, "a", 9); !errors.Is(err, objstore.ErrTooLarge) || errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("%q, %v: want ErrTooLarge", got, err)
	}
}
