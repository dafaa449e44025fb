// SPDX-License-Identifier: Apache-2.0

package s3_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/open"
	"github.com/imgbackup/imgbackup/objstore/s3"
)

// environment returns a getenv.
func environment(pairs ...string) func(string) string {
	m := make(map[string]string)
	for _, p := range pairs {
		name, value, _ := strings.Cut(p, "=")
		m[name] = value
	}
	return func(name string) string { return m[name] }
}

func TestParse(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	if err := os.Mkdir(filepath.Join(home, ".aws"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"config": "[default]\nregion = eu-west-1\nca_bundle = /ca.pem\ns3 =\n    addressing_style = path\n" +
			"[profile minio]\nregion = us-west-2\nendpoint_url = https://minio:9000\n",
		"credentials": "[default]\naws_access_key_id = a\naws_secret_access_key = b\n[minio]\naws_access_key_id = c\naws_secret_access_key = d\n[keys]\naws_access_key_id = e\n",
	} {
		if err := os.WriteFile(filepath.Join(home, ".aws", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		place string
		env   []string
		want  s3.Config
	}{
		{"s3://vms", nil, s3.Config{Bucket: "vms"}},
		{"s3://vms/", nil, s3.Config{Bucket: "vms"}},
		{"s3://my.vms/a/b/", nil, s3.Config{Bucket: "my.vms", Prefix: "a/b"}},
		{"s3://vms/tmp", nil, s3.Config{Bucket: "vms", Prefix: "tmp"}},
		{"s3://vms", []string{"AWS_ENDPOINT_URL=http://a:1", "AWS_DEFAULT_REGION=r1"}, s3.Config{Bucket: "vms", Endpoint: "http://a:1", Region: "r1"}},
		{"s3://vms", []string{"AWS_ENDPOINT_URL=http://a:1", "AWS_ENDPOINT_URL_S3=http://b:1", "AWS_DEFAULT_REGION=r1", "AWS_REGION=r2", "AWS_CA_BUNDLE=/c"}, s3.Config{Bucket: "vms", Endpoint: "http://b:1", Region: "r2", CAFile: "/c"}},
		{
			"s3://vms", []string{"AWS_ENDPOINT_URL_S3=http://b:1", "AWS_REGION=r2", "AWS_CA_BUNDLE=/c", "IMGBACKUP_S3_ENDPOINT=d", "IMGBACKUP_S3_REGION=r3", "IMGBACKUP_S3_CA_FILE=/d", "IMGBACKUP_S3_STYLE=virtual", "IMGBACKUP_S3_CHECKSUM=sha256"},
			s3.Config{Bucket: "vms", Endpoint: "d", Region: "r3", CAFile: "/d", Style: "virtual", Checksum: "sha256"},
		},
		{
			"s3://vms?sse=aws:kms", []string{"IMGBACKUP_S3_SSE=AES256", "IMGBACKUP_S3_SSE_KMS_KEY=k"},
			s3.Config{Bucket: "vms", SSE: "aws:kms", SSEKey: "k"},
		},
		{
			"s3://vms?packclass=STANDARD_IA", []string{"IMGBACKUP_S3_PACK_CLASS=a", "IMGBACKUP_S3_MAP_CLASS=b", "IMGBACKUP_S3_INDEX_CLASS=c"},
			s3.Config{Bucket: "vms", Classes: s3.Classes{Pack: "STANDARD_IA", Map: "b", Index: "c"}},
		},
		{
			"s3://vms/p?endpoint=https://e:9&region=r4&style=path&ca=/e&checksum=crc32c", []string{"IMGBACKUP_S3_ENDPOINT=d", "IMGBACKUP_S3_REGION=r3", "IMGBACKUP_S3_CA_FILE=/d", "IMGBACKUP_S3_STYLE=virtual", "IMGBACKUP_S3_CHECKSUM=sha256"},
			s3.Config{Bucket: "vms", Prefix: "p", Endpoint: "https://e:9", Region: "r4", CAFile: "/e", Style: "path", Checksum: "crc32c"},
		},
		{"s3://vms", []string{"HOME=" + home}, s3.Config{Bucket: "vms", Region: "eu-west-1", CAFile: "/ca.pem"}},
		{"s3://vms", []string{"HOME=" + home, "AWS_PROFILE=minio"}, s3.Config{Bucket: "vms", Region: "us-west-2", Endpoint: "https://minio:9000"}},
		{"s3://vms", []string{"HOME=" + home, "AWS_PROFILE=minio", "AWS_REGION=x"}, s3.Config{Bucket: "vms", Region: "x", Endpoint: "https://minio:9000"}},
		{"s3://vms?profile=minio", []string{"HOME=" + home}, s3.Config{Bucket: "vms", Region: "us-west-2", Endpoint: "https://minio:9000"}},
		{"s3://vms?profile=keys", []string{"HOME=" + home}, s3.Config{Bucket: "vms"}},
		{"s3://vms", []string{"AWS_CONFIG_FILE=" + home + "/.aws/config"}, s3.Config{Bucket: "vms", Region: "eu-west-1", CAFile: "/ca.pem"}},
	} {
		got, err := s3.Parse(c.place, environment(c.env...))
		if got.Credentials == nil && err == nil {
			t.Errorf("%s: no credentials", c.place)
		}
		got.Credentials, got.Proxy = nil, nil
		if err != nil || got != c.want {
			t.Errorf("%s with %q: %+v, %v; want %+v", c.place, c.env, got, err, c.want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ place, env string }{
		{"", ""}, {"s3:/vms", ""}, {"s3://", ""}, {"s3:///a", ""}, {"s3://VMS", ""}, {"s3://a", ""}, {"s3://a_b", ""},
		{"s3://key:hunter2@vms/p", ""}, {"s3://hunter2@vms", ""}, {"s3://minio:9000/vms", ""},
		{"s3://vms/a//b", ""}, {"s3://vms/../b", ""}, {"s3://vms/a b", ""}, {"s3://vms/\n", ""},
		{"s3://vms/" + strings.Repeat("a/", 300) + "b", ""},
		{"s3://vms?secret=hunter2", ""}, {"s3://vms?%zz=hunter2", ""}, {"s3://vms?style=dns", ""}, {"s3://vms?checksum=md5", ""},
		{"s3://vms?region=a/b", ""}, {"s3://vms?endpoint=ftp://a", ""}, {"s3://vms?endpoint=http://", ""},
		{"s3://vms", "AWS_ENDPOINT_URL=http://key:hunter2@host"},
		{"s3://vms", "AWS_ENDPOINT_URL=http://key:hunter2@ho st"},
		{"s3://vms", "AWS_ENDPOINT_URL=http://key:hunter2%zz@host"},
		{"s3://vms", "AWS_ENDPOINT_URL=key:hunter2@host"},
		{"s3://vms", "AWS_ENDPOINT_URL=http://host/path"},
		{"s3://vms", "AWS_PROFILE=absent"},
		{"s3://vms", "IMGBACKUP_S3_STYLE=both"}, {"s3://vms?sse=yes", ""}, {"s3://vms?ssekmskey=k", ""}, {"s3://vms?packclass=GLACIER", ""}, {"s3://vms", "IMGBACKUP_S3_MAP_CLASS=deep_archive"},
		{"s3://vms?indexclass=%0a", ""}, {"s3://vms?sse=AES256", "IMGBACKUP_S3_SSE_KMS_KEY=k"},
	} {
		_, err := s3.Parse(c.place, environment(c.env))
		if !errors.As(err, new(*usage.Error)) {
			t.Errorf("%q with %q: %v, want wrong usage", c.place, c.env, err)
			continue
		}
		wantLine(t, err)
	}
}

func FuzzParse(f *testing.F) {
	seeds := []string{"s3://vms/prefix", "s3://vms?endpoint=https://h:1&style=path", "s3://key:hunter2@vms", "s3://vms?endpoint=http://k:hunter2@h"}
	for _, seed := range seeds {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, place string) {
		c, err := s3.Parse(place, nil)
		if err != nil {
			if len(err.Error()) > 1000 {
				t.Errorf("%d bytes of error", len(err.Error()))
			}
			return
		}
		s, err := s3.Open(s3.Config{
			Bucket: c.Bucket, Prefix: c.Prefix, Endpoint: c.Endpoint, Region: c.Region, Style: c.Style, Checksum: c.Checksum, Credentials: c.Credentials,
		})
		if err != nil && !errors.As(err, new(*usage.Error)) {
			t.Errorf("%q: %v", place, err)
		}
		if err == nil && !strings.HasPrefix(s.String(), "s3://"+c.Bucket+"/") {
			t.Errorf("%q is called %q", place, s)
		}
	})
}

func TestNoCredentials(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	t.Setenv("AWS_ACCESS_KEY", "")
	t.Setenv("AWS_SECRET_KEY", "")
	t.Setenv("AWS_PROFILE", "")
	t.Setenv("HOME", t.TempDir())
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_CONFIG_FILE", os.DevNull)
	file := filepath.Join(t.TempDir(), "credentials")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", file)
	open := func() objstore.Store {
		s, err := open.Open("s3://vms?endpoint=http://127.0.0.1:1", open.Options{Retry: quick})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	wantRefused(t, open(), "no credentials", "AWS_ACCESS_KEY_ID")
	t.Setenv("AWS_ACCESS_KEY_ID", "a")
	wantRefused(t, open(), "not complete")
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	// The order: the environment, then the files.
	if err := os.WriteFile(file, []byte("[default]\naws_access_key_id = from-file\naws_secret_access_key = hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ secret, want string }{{"", "from-file"}, {"hunter2", "from-environment"}} {
		if c.secret != "" {
			t.Setenv("AWS_ACCESS_KEY_ID", "from-environment")
			t.Setenv("AWS_SECRET_ACCESS_KEY", c.secret)
		}
		config, err := s3.Parse("s3://vms", os.Getenv)
		if err != nil {
			t.Fatal(err)
		}
		v, err := config.Credentials.GetWithContext(nil)
		if err != nil || v.AccessKeyID != c.want {
			t.Errorf("credentials %s, %v; want %s", v.AccessKeyID, err, c.want)
		}
	}
}
