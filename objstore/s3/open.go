// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/objstore/pace"
)

// Open returns the store that c describes. It asks the server for nothing.
func Open(c Config) (*Store, error) { return open(c, stallTimeout) }

func open(c Config, stall time.Duration) (*Store, error) {
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
	if c.Proxy == nil {
		proxy := proxies(os.Getenv)
		c.Proxy = &proxy
	}
	if transport.Proxy, err = proxyOf(endpoint, *c.Proxy); err != nil {
		return nil, err
	}
	clock := new(clock)
	limiter := pace.New(pace.Options{Most: c.Connections})
	opts := &minio.Options{
		Creds:      c.Credentials,
		Secure:     endpoint.Scheme == "https",
		Transport:  &s3Round{next: &pacedRound{next: transport, limiter: limiter}, clock: clock},
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
		return nil, usage.Errorf("the S3 endpoint %s can't be used: %w", endpoint, err)
	}
	core.SetS3EnableDualstack(false) // as the AWS tools do
	sse, err := c.encryption()
	if err != nil {
		return nil, err
	}
	s := &Store{
		sse: sse, limiter: limiter, classes: c.Classes, versions: new(atomic.Bool),
		core: *core, transport: transport, clock: clock, bucket: c.Bucket, endpoint: endpoint.String(),
		sha256: c.Checksum == "sha256",
	}
	if c.Prefix != "" {
		s.prefix = c.Prefix + "/"
	}
	return s, nil
}
