// SPDX-License-Identifier: Apache-2.0

package s3_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/retry"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

func wantEmpty(t *testing.T, s objstore.Store) {
	t.Helper()
	for info, err := range s.List(t.Context(), "") {
		t.Errorf("left behind: %+v, %v", info, err)
	}
}

func testS3Probe(t *testing.T, server *s3test.Server) {
	bucket := server.Bucket()
	for _, sum := range []string{"", "crc32c", "sha256"} {
		c := server.Config(bucket, "p"+sum)
		c.Checksum = sum
		s := retry.New(openS3(t, c), quick)
		if err := s.(objstore.Prober).Probe(t.Context()); err != nil {
			t.Errorf("probe with checksum %q: %v", sum, err)
		}
		wantEmpty(t, s)

		// Nor is a store fit that takes what was changed on its way.
		proxy := s3test.NewProxy(t, server, s3test.Fault{How: s3test.Pretend, Method: http.MethodPut, Key: "/checksum"})
		c.Endpoint = proxy.URL
		err := openS3(t, c).Probe(t.Context())
		if err == nil || !strings.Contains(err.Error(), "changed on their way") || errors.As(err, new(*objstore.NoConditionsError)) {
			t.Errorf("a store that does not check (%q): %v", sum, err)
		}
	}
}

// What is refused of a probe since others keep the store busy is asked for again, and no more
// than that.
func testS3BusyProbe(t *testing.T, server *s3test.Server) {
	busy := func(method, key string, times int) s3test.Fault {
		return s3test.Fault{How: s3test.Unavailable, Method: method, Key: key, Times: times}
	}
	proxy := s3test.NewProxy(t, server,
		busy(http.MethodPut, "/object", 2), busy(http.MethodGet, "/object", 1), busy("LIST", "/object", 2), busy(http.MethodHead, "/object", 1),
		busy(http.MethodPut, "/checksum", 3), busy(http.MethodPut, "/create", 2), busy(http.MethodPut, "/replace", 2),
		busy(http.MethodPut, "/race/", 8+7), // nobody is in the first race, and one in the second
		busy(http.MethodPut, "/held/", 1), busy(http.MethodDelete, "/create", 3))
	s := openS3(t, proxy.Config(server, server.Bucket(), "busy"))
	if err := s.Probe(t.Context()); err != nil {
		t.Errorf("probe: %v", err)
	}
	wantEmpty(t, s)
}

// A store that ignores conditions is told from one that has them, and is fit
// for a single writer.
func testS3NoConditions(t *testing.T, server *s3test.Server) {
	proxy := s3test.NewProxy(t, server, s3test.Fault{How: s3test.Overwrite, Method: http.MethodPut})
	bucket := server.Bucket()
	s := retry.New(openS3(t, proxy.Config(server, bucket, "")), quick)
	err := s.(objstore.Prober).Probe(t.Context())
	if !errors.As(err, new(*objstore.NoConditionsError)) {
		t.Errorf("probe: %v, want a NoConditionsError", err)
	}
	wantEmpty(t, s)
	// Nor one that heeds If-None-Match alone.
	half := s3test.NewProxy(t, server, s3test.Fault{How: s3test.Overwrite, Method: http.MethodPut, Key: "/replace"})
	err = openS3(t, half.Config(server, bucket, "half")).Probe(t.Context())
	if !errors.As(err, new(*objstore.NoConditionsError)) || !strings.Contains(err.Error(), "If-Match") {
		t.Errorf("a store that does not replace conditionally: %v", err)
	}
	// Nor is one fit for several that looks only as a request begins.
	early := s3test.NewProxy(t, server, s3test.Fault{How: s3test.Early, Method: http.MethodPut, Key: "/held"})
	err = openS3(t, early.Config(server, bucket, "early")).Probe(t.Context())
	if !errors.As(err, new(*objstore.NoConditionsError)) || !strings.Contains(err.Error(), "as a request begins") {
		t.Errorf("a store that looks only as a request begins: %v", err)
	}
	for _, method := range []string{http.MethodPut, http.MethodDelete} { // done in vain
		proxy := s3test.NewProxy(t, server, s3test.Fault{How: s3test.Pretend, Method: method, Key: "/object"})
		err := openS3(t, proxy.Config(server, bucket, "unfit")).Probe(t.Context())
		if err == nil || errors.As(err, new(*objstore.NoConditionsError)) {
			t.Errorf("a store on which %s does nothing: %v", method, err)
		}
	}
	single := objstore.SingleWriter(s)
	for _, want := range []error{nil, objstore.ErrExists} {
		if err := single.Put(t.Context(), "a", strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Create}); !errors.Is(err, want) {
			t.Errorf("create: %v, want %v", err, want)
		}
	}
}
