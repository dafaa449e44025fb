// SPDX-License-Identifier: Apache-2.0

package s3_test

import (
	"context"
	"strings"
	"testing"

	"github.com/minio/minio-go/v7"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/retry"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// A bucket that demands encryption gets what it demands, also from the probe.
func TestS3Encryption(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.MinIO)
	for _, sse := range []string{"AES256", "aws:kms"} {
		bucket := server.Bucket()
		c := server.Config(bucket, "p")
		c.Credentials = server.Restricted(
			s3test.Allow(bucket, "", "s3:ListBucket", "s3:GetObject", "s3:DeleteObject"), s3test.AllowEncrypted(bucket, sse))
		err := openS3(t, c).Put(t.Context(), "object", strings.NewReader("x"), objstore.PutOptions{})
		if err == nil || !objstore.Permanent(err) {
			t.Errorf("%s is demanded, and not asked for: %v", sse, err)
		} else {
			wantLine(t, err, "AccessDenied", "sse=")
		}
		c.SSE = sse
		if sse == "aws:kms" {
			c.SSEKey = s3test.KMSKey
		}
		s := retry.New(openS3(t, c), quick)
		if err := s.(objstore.Prober).Probe(t.Context()); err != nil {
			t.Errorf("%s: probe: %v", sse, err)
		}
		if err := s.Put(t.Context(), "object", strings.NewReader("x"), objstore.PutOptions{}); err != nil {
			t.Errorf("%s: %v", sse, err)
			continue
		}
		// If-Match works by the entity tag, which is no digest of the bytes here.
		if err := s.Put(t.Context(), "object", strings.NewReader("y"), objstore.PutOptions{Mode: objstore.Replace, Old: []byte("x")}); err != nil {
			t.Errorf("%s: replace: %v", sse, err)
		}
		info, err := server.Client().StatObject(context.Background(), bucket, "p/object", minio.StatObjectOptions{})
		if got := info.Metadata.Get("X-Amz-Server-Side-Encryption"); err != nil || got != sse {
			t.Errorf("%s: encrypted by %q, %v", sse, got, err)
		}
	}
}
