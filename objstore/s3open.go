// SPDX-License-Identifier: Apache-2.0

package objstore

import (
	"os"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// OpenOptions say how to open a place.
type OpenOptions struct {
	// Create: a directory that is not there is made. Buckets never are.
	Create bool
	// Note, if any, is told what a person should know about the place.
	Note func(msg string)
	// Retry is for places that are reached over a network.
	Retry RetryOptions
}

// Open opens the place of a repository: the path of a directory, or
// s3://BUCKET/PREFIX with the settings of the environment (see ParseS3). In S3
// nothing is asked before the first operation, and what fails there and then
// is tried again. What is no place at all is a *PlaceError.
func Open(place string, o OpenOptions) (Store, error) {
	scheme, _, ok := strings.Cut(place, "://")
	switch {
	case !ok && o.Create:
		return createLocal(place, &sys.FolderSyncer{Note: o.Note})
	case !ok:
		return openLocal(place, &sys.FolderSyncer{Note: o.Note})
	case scheme+"://" != s3Scheme:
		return nil, badPlace("places are directories or begin with %s; this one begins with %q", s3Scheme, printable(scheme, 40)+"://")
	}
	c, err := ParseS3(place, os.Getenv)
	if err != nil {
		return nil, err
	}
	s, err := OpenS3(c)
	if err != nil {
		return nil, err
	}
	return Retry(s, o.Retry), nil
}

// OpenS3 returns the store that c describes. It asks the server for nothing.
func OpenS3(c S3Config) (*S3, error) { return openS3(c, stallTimeout) }

func openS3(c S3Config, stall time.Duration) (*S3, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	endpoint, err := c.endpoint()
	if err != nil {
		return nil, err
	}
	transport, err := newTransport(c.CAFile, stall)
	if err != nil {
		return nil, err
	}
	opts := &minio.Options{
		Creds:      c.Credentials,
		Secure:     endpoint.Scheme == "https",
		Transport:  s3Round{transport},
		Region:     c.Region,
		MaxRetries: 1, // a retry that does not know what it repeats is none
	}
	if opts.Creds == nil {
		opts.Creds = awsCredentials("", os.Getenv)
	}
	switch c.Style {
	case "path":
		opts.BucketLookup = minio.BucketLookupPath
	case "virtual":
		opts.BucketLookup = minio.BucketLookupDNS
	}
	if opts.Region == "" && c.Endpoint != "" && !strings.HasSuffix(endpoint.Hostname(), ".amazonaws.com") {
		opts.Region = "us-east-1" // what servers are in that do not care
	}
	core, err := minio.NewCore(endpoint.Host, opts)
	if err != nil {
		return nil, badPlace("the S3 endpoint %s can't be used: %w", endpoint, err)
	}
	core.SetS3EnableDualstack(false) // as the AWS tools do
	s := &S3{
		core: *core, transport: transport, bucket: c.Bucket, endpoint: endpoint.String(),
		sha256: c.Checksum == "sha256",
	}
	if c.Prefix != "" {
		s.prefix = c.Prefix + "/"
	}
	return s, nil
}
