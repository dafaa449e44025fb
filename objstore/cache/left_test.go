// SPDX-License-Identifier: Apache-2.0

package cache_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/cache"
)

// What a killed program has left goes when another begins, though that writes nothing.
func TestLeftIsSweptAtOnce(t *testing.T) {
	t.Parallel()
	d, err := cache.Open(filepath.Join(t.TempDir(), "cache"), limit)
	if err != nil {
		t.Fatal(err)
	}
	o := cache.Options{ID: "id", Place: "far", Kind: kind}
	folder, _ := d.Folder(o.ID, o.Place)
	temps := filepath.Join(filepath.Dir(folder), "tmp")
	left := filepath.Join(temps, "new-LEFT")
	if err := errors.Join(os.MkdirAll(temps, 0o700), os.WriteFile(left, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	cache.New(objstore.NewMem(), d, o)
	if _, err := os.Lstat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is there still: %v", err)
	}
}
