// SPDX-License-Identifier: Apache-2.0

package s3_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
	"github.com/imgbackup/imgbackup/objstore/retry"
	"github.com/imgbackup/imgbackup/objstore/s3"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// TestS3 runs one server of each kind, and all that is tested on real ones.
func TestS3(t *testing.T) {
	t.Parallel()
	for _, kind := range s3test.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			server := s3test.Start(t, kind)
			for name, test := range map[string]func(*testing.T, *s3test.Server){
				"contract":              testS3Contract,
				"contract with SHA-256": testS3SHA256,
				"contract with faults":  testS3Faults,
				"lost answers":          testS3LostAnswers,
				"doubt":                 testS3Doubt,
				"cut bodies":            testS3CutBodies,
				"bodies that stall":     testS3Stall,
				"replaced while read":   testS3Replaced,
				"cut uploads":           testS3CutUploads,
				"folders":               testS3Folders,
				"listing":               testS3List,
				"no S3 server":          testS3NotS3,
				"no S3 server for once": testS3NotS3Once,
				"pages of listings":     testS3ListPages,
				"requests":              testS3Requests,
				"unasked":               testS3Unasked,
				"credentials":           testS3Credentials,
				"missing bucket":        testS3NoBucket,
				"refusals":              testS3Refusals,
				"probe":                 testS3Probe,
				"busy probe":            testS3BusyProbe,
				"known SHA-256":         testS3Known,
				"no conditions":         testS3NoConditions,
				"restart":               testS3Restart,
				"retention":             testS3Retention,
				"batches of deletes":    testS3Batch,
			} {
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					test(t, server)
				})
			}
		})
	}
}

// prefixes makes configurations whose prefixes are all different.
func prefixes(server *s3test.Server) func() s3.Config {
	bucket := server.Bucket()
	var n atomic.Int64
	return func() s3.Config {
		// One is the beginning of the other, which must not show.
		return server.Config(bucket, fmt.Sprintf("vm/p%d", n.Add(1)))
	}
}

func openS3(t *testing.T, c s3.Config) *s3.Store {
	t.Helper()
	s, err := s3.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// quick are retries for tests.
var quick = retry.Options{
	Patience: 60 * time.Second, FirstPatience: 60 * time.Second,
	FirstDelay: time.Millisecond, MaxDelay: 20 * time.Millisecond,
}

// The contract holds with retries: a server may reset a connection whose
// upload it has no use for.
func testS3Contract(t *testing.T, server *s3test.Server) {
	config := prefixes(server)
	objstoretest.Run(t, func(t *testing.T) objstore.Store { return retry.New(openS3(t, config()), quick) })
}

func testS3SHA256(t *testing.T, server *s3test.Server) {
	config := prefixes(server)
	objstoretest.Run(t, func(t *testing.T) objstore.Store {
		c := config()
		c.Checksum = "sha256"
		return retry.New(openS3(t, c), quick)
	})
}
