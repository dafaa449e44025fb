// SPDX-License-Identifier: Apache-2.0

package s3

import (
	"net/url"
	"regexp"
	"strings"

	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/encrypt"
	"golang.org/x/net/http/httpproxy"

	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/pace"
)

// Scheme is what the name of a place in S3 begins with.
const Scheme = "s3://"

// awsEndpoint is where buckets are when nothing else is said.
const awsEndpoint = "https://s3.amazonaws.com"

// Config says where a store is and how to talk to it. The zero values of all
// but Bucket are usable.
type Config struct {
	Bucket   string
	Prefix   string // of all keys, without slashes at its ends; may be ""
	Endpoint string // a URL without path; "" is AWS
	Region   string // "" is us-east-1, and with AWS the bucket's
	Style    string // "path", "virtual" (the bucket is in the host's name), or "" by the endpoint
	CAFile   string // PEM file of more certificate authorities
	Checksum string // of uploads: "crc32c" or ""; "sha256"
	// SSE is how the server shall encrypt what it stores: "AES256", by its own keys;
	// "aws:kms", by one of its key service; "": as the bucket does.
	SSE     string
	SSEKey  string // the id of the key service's key; "" is the bucket's, or its own
	Classes Classes
	// Connections bounds how many requests are at work at once; 0: [pace.Default].
	Connections int
	// Proxy says which proxies there are; nil: as the environment says.
	Proxy *httpproxy.Config
	// Credentials to sign with; nil: those that the AWS tools would find.
	Credentials *credentials.Credentials
}

var (
	bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	regionName = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)
)

// Parse reads "s3://bucket/prefix?endpoint=URL&region=R&style=S&ca=FILE&profile=P&checksum=C&sse=E&ssekmskey=K&packclass=C&mapclass=C&indexclass=C".
// What the query does not say is taken from the environment (getenv is
// os.Getenv, or nil for none) and then from the profile in the AWS tools'
// files. The error is wrong usage. It never shows a password.
func Parse(place string, getenv func(string) string) (Config, error) {
	if getenv == nil {
		getenv = func(string) string { return "" }
	}
	rest, ok := strings.CutPrefix(place, Scheme)
	if !ok {
		return Config{}, usage.Errorf("the place does not begin with %s", Scheme)
	}
	rest, query, _ := strings.Cut(rest, "?")
	bucket, prefix, _ := strings.Cut(rest, "/")
	if strings.ContainsAny(bucket, "@:") {
		return Config{}, usage.Errorf("a place in S3 is %sBUCKET/PREFIX: credentials and hosts do not belong into it (credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; host: AWS_ENDPOINT_URL_S3)", Scheme)
	}
	if !bucketName.MatchString(bucket) {
		return Config{}, usage.Errorf("%q is no name for a bucket: a place in S3 is %sBUCKET/PREFIX", printable(bucket, 70), Scheme)
	}
	prefix = strings.Trim(prefix, "/")
	if prefix != "" {
		// As a part of keys, but its first part may have any name.
		if err := objstore.CheckKey("p/" + prefix); err != nil || len(prefix) > objstore.MaxKeyLength/2 {
			return Config{}, usage.Errorf("%q can't be a prefix in a bucket: use letters, digits and any of _.%%~+/- (at most %d)", printable(prefix, 70), objstore.MaxKeyLength/2)
		}
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return Config{}, usage.Errorf("the options of the place in S3 can't be read")
	}
	option := make(map[string]string)
	for name, v := range values {
		switch name {
		case "endpoint", "region", "style", "ca", "profile", "checksum", "sse", "ssekmskey", "packclass", "mapclass", "indexclass":
			option[name] = v[0]
		default:
			return Config{}, usage.Errorf("a place in S3 has no option %q: there are endpoint, region, style, ca, profile, checksum, sse, ssekmskey, packclass, mapclass and indexclass", printable(name, 40))
		}
	}
	profile, err := readProfile(first(option["profile"], getenv("AWS_PROFILE")), getenv)
	if err != nil {
		return Config{}, err
	}
	proxy := proxies(getenv)
	c := Config{
		Proxy:  &proxy,
		Bucket: bucket,
		Prefix: prefix,
		Endpoint: first(option["endpoint"], getenv("IMGBACKUP_S3_ENDPOINT"), getenv("AWS_ENDPOINT_URL_S3"),
			getenv("AWS_ENDPOINT_URL"), profile["endpoint_url"]),
		Region: first(option["region"], getenv("IMGBACKUP_S3_REGION"), getenv("AWS_REGION"),
			getenv("AWS_DEFAULT_REGION"), profile["region"]),
		Style:    first(option["style"], getenv("IMGBACKUP_S3_STYLE")),
		CAFile:   first(option["ca"], getenv("IMGBACKUP_S3_CA_FILE"), getenv("AWS_CA_BUNDLE"), profile["ca_bundle"]),
		Checksum: first(option["checksum"], getenv("IMGBACKUP_S3_CHECKSUM")),
		SSE:      first(option["sse"], getenv("IMGBACKUP_S3_SSE")),
		SSEKey:   first(option["ssekmskey"], getenv("IMGBACKUP_S3_SSE_KMS_KEY")),
		Classes: Classes{
			Pack:  first(option["packclass"], getenv("IMGBACKUP_S3_PACK_CLASS")),
			Map:   first(option["mapclass"], getenv("IMGBACKUP_S3_MAP_CLASS")),
			Index: first(option["indexclass"], getenv("IMGBACKUP_S3_INDEX_CLASS")),
		},
		Credentials: awsCredentials(option["profile"], getenv),
	}
	return c, c.check()
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// check says what in a configuration is not usable.
func (c *Config) check() error {
	if _, err := c.endpoint(); err != nil {
		return err
	}
	if c.Region != "" && !regionName.MatchString(c.Region) {
		return usage.Errorf("%q is no name for a region", printable(c.Region, 70))
	}
	switch c.Style {
	case "", "path", "virtual":
	default:
		return usage.Errorf("the style of S3 requests is path or virtual, not %q", printable(c.Style, 40))
	}
	switch c.Checksum {
	case "", "crc32c", "sha256":
	default:
		return usage.Errorf("the checksum of uploads is crc32c or sha256, not %q", printable(c.Checksum, 40))
	}
	if c.Connections < 0 || c.Connections > pace.Max {
		return usage.Errorf("a store is asked for 1 to %d things at once, not %d", pace.Max, c.Connections)
	}
	if err := c.Classes.check(); err != nil {
		return err
	}
	_, err := c.encryption()
	return err
}

// encryption is what the server is asked for; nil is nothing.
func (c *Config) encryption() (encrypt.ServerSide, error) {
	switch {
	case c.SSE == "aws:kms":
		return encrypt.NewSSEKMS(c.SSEKey, nil)
	case c.SSEKey != "":
		return nil, usage.Errorf("a key of the key service (ssekmskey, IMGBACKUP_S3_SSE_KMS_KEY) goes with sse=aws:kms")
	case c.SSE == "AES256":
		return encrypt.NewSSE(), nil
	case c.SSE == "":
		return nil, nil
	}
	return nil, usage.Errorf("the server encrypts by sse=AES256 or sse=aws:kms, not %q", printable(c.SSE, 40))
}

// endpoint is the URL of the store, which has a scheme and a host only.
func (c *Config) endpoint() (*url.URL, error) {
	text := first(c.Endpoint, awsEndpoint)
	if !strings.Contains(text, "://") {
		text = "https://" + text
	}
	u, err := url.Parse(text)
	switch {
	case err != nil: // its text would show what was between :// and @
		return nil, usage.Errorf("the S3 endpoint can't be read: it is something like https://minio.example.org:9000")
	case u.User != nil:
		return nil, usage.Errorf("the S3 endpoint %s has a user name in it: credentials are given by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", u.Redacted())
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "", strings.Trim(u.Path, "/") != "", u.RawQuery != "", u.Fragment != "":
		return nil, usage.Errorf("%q can't be an S3 endpoint: it is something like https://minio.example.org:9000", printable(u.Redacted(), 100))
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host}, nil
}
