// SPDX-License-Identifier: Apache-2.0

package s3_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
	"github.com/imgbackup/imgbackup/objstore/s3"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// TestS3OneConnection: a store that is asked one thing at a time keeps every promise, and a
// server's weakness is found all the same.
func TestS3OneConnection(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.MinIO)
	one := func(c s3.Config) *s3.Store {
		c.Connections = 1
		return openS3(t, c)
	}
	t.Run("contract", func(t *testing.T) {
		t.Parallel()
		objstoretest.Run(t, func(t *testing.T) objstore.Store { return one(server.Config(server.Bucket(), "p")) })
	})
	t.Run("probe", func(t *testing.T) {
		t.Parallel()
		if err := one(server.Config(server.Bucket(), "p")).Probe(t.Context()); err != nil {
			t.Error(err)
		}
		proxy := s3test.NewProxy(t, server, s3test.Fault{How: s3test.Early, Method: http.MethodPut, Key: "/held"})
		var weak *objstore.NoConditionsError
		if err := one(proxy.Config(server, server.Bucket(), "p")).Probe(t.Context()); !errors.As(err, &weak) {
			t.Errorf("a server that looks only as a request begins: %v", err)
		}
	})
	t.Run("given up", func(t *testing.T) {
		t.Parallel()
		s := one(server.Config(server.Bucket(), "p"))
		if err := s.Put(t.Context(), "a", strings.NewReader(strings.Repeat("x", 1<<20)), objstore.PutOptions{}); err != nil {
			t.Fatal(err)
		}
		r, err := s.Get(t.Context(), "a", 0, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		// While it is read nothing else begins, and whoever waits can give up.
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if _, err := s.Stat(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("beside a body: %v", err)
		}
		var others sync.WaitGroup
		others.Go(func() {
			if _, err := s.Stat(t.Context(), "a"); err != nil {
				t.Error(err)
			}
		})
		if n, err := io.Copy(io.Discard, r); n != 1<<20 || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
		others.Wait() // it was read to its end, and is not closed yet
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
}
