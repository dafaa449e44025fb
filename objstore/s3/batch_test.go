// SPDX-License-Identifier: Apache-2.0

package s3_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/retry"
	"github.com/imgbackup/imgbackup/objstore/s3"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// Many objects are removed with one request. What answers it that is no S3 server
// has removed nothing, whatever it says; a lost answer is an error, and nothing is
// asked for twice.
func testS3Batch(t *testing.T, server *s3test.Server) {
	bucket := server.Bucket()
	for how, name := range map[s3test.How]string{
		-1: "", s3test.Portal: "Please log in", s3test.ErrorOK: "InternalError", s3test.Empty: "is not an S3 server's",
		s3test.Internal: "InternalError", s3test.Reset: "", s3test.Lost: "",
	} {
		t.Run(fmt.Sprint(how), func(t *testing.T) {
			t.Parallel()
			var faults []s3test.Fault
			if how >= 0 {
				faults = append(faults, s3test.Fault{How: how, Method: http.MethodPost})
			}
			proxy := s3test.NewProxy(t, server, faults...)
			s := retry.New(openS3(t, proxy.Config(server, bucket, fmt.Sprintf("batch%d", how))), quick)
			var keys []string
			for i := range 20 {
				keys = append(keys, fmt.Sprintf("packs/a/%d", i))
				if err := s.Put(t.Context(), keys[i], strings.NewReader("x"), objstore.PutOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			err := objstore.DeleteBatch(t.Context(), s, keys)
			_, stat := s.Stat(t.Context(), keys[19])
			gone := errors.Is(stat, objstore.ErrNotFound)
			switch {
			case how < 0 && (err != nil || !gone):
				t.Errorf("%v, gone: %v", err, gone)
			case how >= 0 && (err == nil || !strings.Contains(err.Error(), name) || gone != (how == s3test.Lost)):
				t.Errorf("%v, gone: %v", err, gone)
			}
			if n := proxy.Count(http.MethodPost); n != 1 {
				t.Errorf("%d requests", n)
			}
			var known *s3.Error
			if how == s3test.Internal && !errors.As(err, &known) {
				t.Errorf("%v is none of the store's", err)
			}
		})
	}
}
