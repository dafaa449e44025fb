// SPDX-License-Identifier: Apache-2.0

package s3_test

import (
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// testS3Retention: in a bucket with object lock an object is kept as it was asked
// for.
func testS3Retention(t *testing.T, server *s3test.Server) {
	bucket := server.LockedBucket()
	s := openS3(t, server.Config(bucket, "p"))
	until := time.Now().Add(time.Hour).Truncate(time.Second)
	for how, want := range map[objstore.Retention]minio.RetentionMode{objstore.Compliance: minio.Compliance, objstore.Governance: minio.Governance} {
		o := objstore.PutOptions{RetainUntil: until, Retention: how}
		key := strings.ToLower(string(want))
		if err := s.Put(t.Context(), key, strings.NewReader("x"), o); err != nil {
			t.Errorf("%s: %v", want, err)
			continue
		}
		if server.Kind() != s3test.MinIO {
			continue // versitygw's answer is not what the client can read
		}
		mode, kept, err := server.Client().GetObjectRetention(t.Context(), bucket, "p/"+key, "")
		if err != nil || mode == nil || *mode != want || kept == nil || !kept.Equal(until) {
			t.Errorf("%s until %s: kept as %v until %v, %v", want, until, mode, kept, err)
		}
	}
}
