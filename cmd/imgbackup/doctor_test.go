// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/objstore/retry"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// TestDoctorBuckets: of each repository in a bucket it is told whether it can be reached, read and written to, with which
// credentials and by what clock; one that is away keeps nothing else waiting.
func TestDoctorBuckets(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.MinIO)
	b := newBucket(server)
	if _, err := chain.Init(t.Context(), b.open(t), chain.InitOptions{}); err != nil {
		t.Fatal(err)
	}
	readOnly, err := server.ReadOnly(b.name).GetWithContext(nil)
	if err != nil {
		t.Fatal(err)
	}
	skewed := s3test.NewProxy(t, server, s3test.Fault{How: s3test.Skewed})
	dir := t.TempDir()
	var text strings.Builder
	text.WriteString("repositories:\n")
	for name, c := range map[string][4]string{
		"good":   {server.Endpoint, s3test.AccessKey, s3test.SecretKey},
		"reads":  {server.Endpoint, readOnly.AccessKeyID, readOnly.SecretAccessKey, readOnly.SessionToken},
		"wrong":  {server.Endpoint, s3test.AccessKey, "another-secret"},
		"away":   {"http://127.0.0.1:1", s3test.AccessKey, s3test.SecretKey},
		"skewed": {skewed.URL, s3test.AccessKey, s3test.SecretKey},
	} {
		fmt.Fprintf(&text, "  %s: {place: %q, credentials: {AWS_ENDPOINT_URL_S3: %q, AWS_ACCESS_KEY_ID: %q, AWS_SECRET_ACCESS_KEY: {value: %q}, AWS_SESSION_TOKEN: {value: %q}, AWS_REGION: %q}}\n",
			name, b.String(), c[0], c[1], c[2], c[3], s3test.Region)
	}
	config := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(config, []byte(strings.ReplaceAll(text.String(), `, AWS_SESSION_TOKEN: {value: ""}`, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	var o, e bytes.Buffer
	code := run([]string{"doctor", "--config", config, "--images", dir, "--write", "--timeout", "10m", "--json"},
		program{in: strings.NewReader(""), out: &o, err: &e, retry: retry.Options{FirstPatience: time.Second}}) // with the one that is away
	out, stderr := o.String(), e.String()
	var found doctorJSONText
	if err := json.Unmarshal([]byte(out), &found); err != nil || code != exitFailed {
		t.Fatalf("exit status %d, %v: %s", code, err, stderr)
	}
	for name, want := range map[string]struct {
		level string
		texts []string
	}{
		"good":   {"ok", []string{"opened in", "clock", "objects are stored, and removed again"}},
		"reads":  {"failed", []string{"opened in", "objects can't be stored: "}},
		"wrong":  {"failed", []string{"secret key is not the access key's"}},
		"away":   {"failed", []string{"127.0.0.1:1"}},
		"skewed": {"failed", []string{"clock is too far from the server's"}},
	} {
		level, said := "ok", ""
		for _, f := range found.Findings {
			if f.Check == "repository "+name {
				said += f.Text + "\n"
				if f.Level != "ok" {
					level = f.Level
				}
			}
		}
		if level != want.level {
			t.Errorf("%s is %s, want %s: %s", name, level, want.level, said)
		}
		for _, w := range want.texts {
			if !strings.Contains(said, w) {
				t.Errorf("%s: nothing is said of %q: %s", name, w, said)
			}
		}
	}
	if strings.Contains(out+stderr, s3test.SecretKey) || strings.Contains(out+stderr, readOnly.SessionToken) {
		t.Error("a secret is told")
	}
}

// doctorJSONText is doctorJSON as programs read it.
type doctorJSONText struct {
	Findings []struct{ Check, Level, Text, Advice string }
}
