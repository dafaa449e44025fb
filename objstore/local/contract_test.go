// SPDX-License-Identifier: Apache-2.0

package local_test

import (
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/local"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
)

func TestLocal(t *testing.T) {
	t.Parallel()
	objstoretest.Run(t, func(t *testing.T) objstore.Store { return newLocal(t, t.TempDir()) })
}

func newLocal(t *testing.T, dir string) *local.Store {
	t.Helper()
	if _, err := local.Create(dir, local.Options{}); err != nil {
		t.Fatal(err)
	}
	return openLocal(t, dir)
}

func openLocal(t *testing.T, dir string) *local.Store {
	t.Helper()
	s, err := local.Open(dir, local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}
