// SPDX-License-Identifier: Apache-2.0

package archive_test

import (
	"errors"
	"io"
	"testing"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/local"
)

// A missing object is told in one word, whatever its store says of it.
func TestMissing(t *testing.T) {
	t.Parallel()
	store, err := local.Create(t.TempDir(), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	key := archive.PackKey(archive.Sum([]byte("x")))
	to := objstore.NewMem()
	_, err = archive.CopyObject(t.Context(), store, to, key, archive.Ref{Name: archive.Sum([]byte("x")), Length: 1}, t.TempDir())
	var damage *archive.DamageError
	if !errors.As(err, &damage) || !errors.Is(err, objstore.ErrNotFound) || errors.Is(err, io.EOF) || damage.Error() != key+" is missing" || damage.Err.Error() != "it is missing" {
		t.Errorf("%v", err)
	}
}
