// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/retry"
	"github.com/imgbackup/imgbackup/objstore/s3"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// TestCommitLate: a request that creates a manifest is cut off, and reaches
// the server only after Commit has returned. It never makes a lie of what
// Commit said.
func TestCommitLate(t *testing.T) {
	t.Parallel()
	for _, kind := range s3test.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			server := s3test.Start(t, kind)
			bucket := server.Bucket()
			for i, c := range []lateCase{
				{"asked again", s3test.Fault{}, false, "committed", http.StatusPreconditionFailed},
				{"interrupted", s3test.Fault{}, true, "committed", http.StatusPreconditionFailed},
				{"refused", s3test.Fault{How: s3test.Skewed}, false, "unknown", http.StatusOK},
				{"interrupted and refused", s3test.Fault{How: s3test.Skewed}, true, "unknown", http.StatusOK},
				{"somebody else is first", s3test.Fault{}, false, "taken", http.StatusPreconditionFailed},
			} {
				for _, again := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s/%v", c.name, again), func(t *testing.T) {
						t.Parallel()
						c.run(t, server, server.Config(bucket, fmt.Sprintf("p%d/%v", i, again)), again)
					})
				}
			}
		})
	}
}

type lateCase struct {
	name    string
	then    s3test.Fault // what the requests after the first one meet
	cancel  bool         // while the first one is under way
	want    string
	arrives int // what the server answers to the first one in the end
}

func (c lateCase) run(t *testing.T, server *s3test.Server, config s3.Config, again bool) {
	open := func(c s3.Config, again bool) objstore.Store {
		s, err := s3.Open(c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		if !again {
			return s
		}
		return retry.New(s, retry.Options{FirstDelay: time.Millisecond})
	}
	plain, err := Init(t.Context(), open(config, true), InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	m, other := plain.sample("web", "one"), plain.sample("web", "one")
	manifests := "/checkpoints/"
	faults := []s3test.Fault{{How: s3test.Late, Method: http.MethodPut, Key: manifests, Times: 1, Do: func() {
		if c.want == "taken" {
			commit(t, plain, other)
		}
		if c.cancel {
			cancel()
		}
	}}}
	if c.then.How != 0 {
		c.then.Method, c.then.Key = http.MethodPut, manifests
		faults = append(faults, c.then)
	}
	proxy := s3test.NewProxy(t, server, faults...)
	config.Endpoint = proxy.URL
	err = plain.with(open(config, again)).Commit(ctx, m)
	var unknown *UnknownOutcomeError
	var taken *TakenError
	got := "failed"
	switch {
	case err == nil:
		got = "committed"
	case errors.As(err, &unknown):
		got = "unknown"
	case errors.As(err, &taken):
		got = "taken"
	}
	if got != c.want {
		t.Errorf("%s (%v), want %s", got, err, c.want)
	}
	if got := proxy.Deliver(); !slices.Equal(got, []int{c.arrives}) {
		t.Errorf("the server answers %v, want %d", got, c.arrives)
	}
	want := m.UUID
	if c.want == "taken" {
		want = other.UUID
	}
	if stands, err := plain.Manifest(t.Context(), "web", "one"); err != nil || stands.UUID != want {
		t.Errorf("in the end %+v stands there, %v; want %s", stands, err, want)
	}
}
