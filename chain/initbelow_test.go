// SPDX-License-Identifier: Apache-2.0

package chain_test

import (
	"errors"
	"testing"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/s3"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// TestInitBelow: where a repository was removed from a bucket that keeps versions, its configuration,
// below the marker, would count for all who open another one there: so none is made.
func TestInitBelow(t *testing.T) {
	t.Parallel()
	server := s3test.StartVersioned(t, s3test.MinIO)
	bucket := server.LockedBucket()
	open := func(prefix string) objstore.Store {
		store, err := s3.Open(server.Config(bucket, prefix))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = store.Close() })
		return store
	}
	store := open("site")
	first, err := chain.Init(t.Context(), store, chain.InitOptions{})
	if err == nil {
		err = store.Delete(t.Context(), chain.ConfigKey)
	}
	if err != nil {
		t.Fatal(err)
	}
	second, err := chain.Init(t.Context(), store, chain.InitOptions{})
	if err == nil {
		r, oerr := chain.Open(t.Context(), open("site"))
		if oerr != nil {
			t.Fatal(oerr)
		}
		t.Errorf("made %s where %s was; %s is opened", second.Config.ID, first.Config.ID, r.Config.ID)
	} else if !errors.As(err, new(*chain.InitError)) {
		t.Error(err)
	}
	if _, err := chain.Init(t.Context(), open("other"), chain.InitOptions{}); err != nil {
		t.Errorf("beside it: %v", err)
	}
}
