// SPDX-License-Identifier: Apache-2.0

package objstore_test

import (
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
)

func TestMem(t *testing.T) {
	t.Parallel()
	objstoretest.Run(t, func(*testing.T) objstore.Store { return objstore.NewMem() })
}

func TestLocal(t *testing.T) {
	t.Parallel()
	objstoretest.Run(t, func(t *testing.T) objstore.Store { return newLocal(t, t.TempDir()) })
}

func newLocal(t *testing.T, dir string) *objstore.Local {
	t.Helper()
	if _, err := objstore.CreateLocal(dir); err != nil {
		t.Fatal(err)
	}
	return openLocal(t, dir)
}

func openLocal(t *testing.T, dir string) *objstore.Local {
	t.Helper()
	s, err := objstore.OpenLocal(dir)
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
