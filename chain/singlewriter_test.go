// SPDX-License-Identifier: Apache-2.0

package chain_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/retry"
	"github.com/imgbackup/imgbackup/objstore/s3"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

func initS3(t *testing.T, c s3.Config, o chain.InitOptions) (*chain.Repository, objstore.Store, error) {
	t.Helper()
	s, err := s3.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	store := retry.New(s, retry.Options{})
	r, err := chain.Init(t.Context(), store, o)
	return r, store, err
}

// A store without conditional writes is refused, unless one writer is promised,
// which is recorded.
func TestInitSingleWriter(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.VersityGW)
	proxy := s3test.NewProxy(t, server, s3test.Fault{How: s3test.Overwrite, Method: http.MethodPut})
	c := proxy.Config(server, server.Bucket(), "repo")

	_, store, err := initS3(t, c, chain.InitOptions{})
	if !errors.As(err, new(*objstore.NoConditionsError)) || !strings.Contains(err.Error(), "--single-writer") {
		t.Errorf("init: %v", err)
	}
	for info, err := range store.List(t.Context(), "") {
		t.Errorf("a refused init left %+v, %v", info, err)
	}
	made, store, err := initS3(t, c, chain.InitOptions{SingleWriter: true})
	if err != nil {
		t.Fatal(err)
	}
	opened, err := chain.Open(t.Context(), store)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []*chain.Repository{made, opened} {
		if !r.Config.SingleWriter || r.Config.ID != made.Config.ID {
			t.Errorf("recorded: %+v", r.Config)
		}
		// What stands there is not overwritten, though the store would.
		if err := r.Store.Put(t.Context(), chain.ConfigKey, strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Create}); !errors.Is(err, objstore.ErrExists) {
			t.Errorf("create over the configuration: %v", err)
		}
	}
	if _, _, err := initS3(t, c, chain.InitOptions{SingleWriter: true}); !errors.Is(err, objstore.ErrExists) {
		t.Errorf("init again: %v", err)
	}
}

func TestInitS3(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.VersityGW)
	c := server.Config(server.Bucket(), "a/repo")
	r, store, err := initS3(t, c, chain.InitOptions{SingleWriter: true}) // not needed: not recorded
	if err != nil || r.Config.SingleWriter {
		t.Fatalf("init: %+v, %v", r, err)
	}
	// What an init that was killed left behind is in nobody's way.
	if err := store.Delete(t.Context(), chain.ConfigKey); err != nil {
		t.Fatal(err)
	}
	if err := store.Put(t.Context(), objstore.ProbePrefix+"X/object", strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Create}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := initS3(t, c, chain.InitOptions{}); err != nil {
		t.Errorf("init: %v", err)
	}
	if _, _, err := initS3(t, c, chain.InitOptions{}); !errors.Is(err, objstore.ErrExists) {
		t.Errorf("init again: %v", err)
	}
}

// A store that is not fit is no place for a repository, whatever is promised.
func TestInitUnfit(t *testing.T) {
	t.Parallel()
	unfit := errors.New("unfit")
	_, err := chain.Init(t.Context(), unfitStore{objstore.NewMem(), unfit}, chain.InitOptions{SingleWriter: true})
	if !errors.Is(err, unfit) {
		t.Errorf("init: %v", err)
	}
}

type unfitStore struct {
	objstore.Store
	err error
}

func (u unfitStore) Probe(context.Context) error { return u.err }
