// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// The ways to name a store and its credentials, as programs find them.
func TestS3Ways(t *testing.T) {
	t.Parallel()
	for _, kind := range s3test.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			server := s3test.Start(t, kind)
			s := scenesIn(t, 1, newBucket(server))[1]
			t.Run("virtual hosts and a proxy", func(t *testing.T) {
				t.Parallel()
				w := s.copy(t)
				hosts := w.bucket.behind(t)
				w.bucket.proxy = ""
				w.bucket.more = []string{
					"AWS_ENDPOINT_URL_S3=http://" + s3test.Domain, "IMGBACKUP_S3_STYLE=virtual",
					"HTTP_PROXY=" + hosts.URL, "http_proxy=" + hosts.URL, "NO_PROXY=", "no_proxy=",
				}
				s.worksFor(w)
				if hosts.Count(http.MethodPut) == 0 {
					t.Error("nothing was stored through the proxy")
				}
			})
			t.Run("profile", func(t *testing.T) {
				t.Parallel()
				w := s.copy(t)
				w.bucket.query = "?profile=site"
				files := w.write(map[string]string{
					"config":      fmt.Sprintf("[profile site]\nregion = %s\nendpoint_url = %s\n", s3test.Region, server.Endpoint),
					"credentials": fmt.Sprintf("[default]\naws_access_key_id = other\naws_secret_access_key = hunter2\n[site]\naws_access_key_id = %s\naws_secret_access_key = %s\n", s3test.AccessKey, s3test.SecretKey),
				})
				w.bucket.more = []string{
					"AWS_ENDPOINT_URL_S3=", "AWS_REGION=", "AWS_ACCESS_KEY_ID=other", "AWS_SECRET_ACCESS_KEY=hunter2",
					"AWS_CONFIG_FILE=" + files["config"], "AWS_SHARED_CREDENTIALS_FILE=" + files["credentials"],
				}
				s.worksFor(w)
			})
			t.Run("TLS", func(t *testing.T) {
				t.Parallel()
				server := s3test.StartTLS(t, kind)
				w := scenesIn(t, 1, newBucket(server))[1]
				w.bucket.more = []string{"IMGBACKUP_S3_CA_FILE=", "AWS_CA_BUNDLE=" + server.CAFile}
				w.worksFor(w.world)
			})
		})
	}
}

// write writes files into the world's folder, and returns their paths.
func (w *world) write(files map[string]string) map[string]string {
	w.Helper()
	paths := make(map[string]string)
	for name, content := range files {
		paths[name] = filepath.Join(w.dir, name)
		if err := os.WriteFile(paths[name], []byte(content), 0o600); err != nil {
			w.Fatal(err)
		}
	}
	return paths
}

// worksFor does the main job with processes of the program, in the environment
// of the world's bucket.
func (s scene) worksFor(w *world) {
	w.Helper()
	run := func(w *world, args ...string) {
		w.Helper()
		o := w.outcome(w.child(nil, args...))
		if o.code != exitDone {
			w.Fatalf("imgbackup %v: exit status %d: %s", args, o.code, o.err)
		}
		if strings.Contains(o.out+o.err, s3test.SecretKey) {
			w.Errorf("imgbackup %v tells the secret: %s%s", args, o.out, o.err)
		}
	}
	run(w, w.backup("killed", "--mode", s.mode)...)
	out := filepath.Join(w.dir, "out")
	run(w, "restore", domain, "--checkpoint", "killed", "--output", out)
	if w.sum(filepath.Join(out, "vda.raw")) != w.now["vda"] {
		w.Error("the disk has other bytes than it had")
	}
	run(w, "check", "--read-data")
	empty, b := *w, *w.bucket
	b.prefix += "-new" // beside it, not in it
	empty.bucket = &b
	run(&empty, "init")
	for _, b := range []*bucket{w.bucket, &b} {
		for key, data := range b.texts(w) {
			if bytes.Contains(data, []byte(s3test.SecretKey)) || bytes.Contains(data, []byte(s3test.AccessKey)) {
				w.Errorf("credentials are in %s", key)
			}
		}
	}
}

// texts are the objects that are plain text.
func (b *bucket) texts(w *world) map[string][]byte {
	w.Helper()
	texts := make(map[string][]byte)
	for _, key := range b.keys(w) {
		if !strings.HasSuffix(key, ".json") {
			continue
		}
		data, err := objstore.ReadAll(w.Context(), b.open(w), key, 1<<20)
		if err != nil {
			w.Fatal(err)
		}
		texts[key] = data
	}
	if texts["imgbackup.json"] == nil {
		w.Fatalf("%s is no repository", b)
	}
	return texts
}

// A store that ignores conditions is refused, unless the user promises to be
// the only writer; then the promise is recorded, and all works.
func TestS3SingleWriter(t *testing.T) {
	t.Parallel()
	for _, kind := range s3test.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			w := scenesIn(t, 1, newBucket(s3test.Start(t, kind)))[0]
			w.bucket.prefix = "single"
			w.bucket.behind(t, s3test.Fault{How: s3test.Overwrite, Method: http.MethodPut})
			o := w.outcome(w.child(nil, "init"))
			if o.code != exitFailed || strings.Count(o.err, "\n") != 1 {
				t.Errorf("exit status %d: %s", o.code, o.err)
			}
			w.verifyLine(o, "--single-writer")
			if keys := w.bucket.keys(t); len(keys) > 0 {
				t.Errorf("left %v", keys)
			}
			if o := w.outcome(w.child(nil, "init", "--single-writer")); o.code != exitDone {
				t.Fatalf("exit status %d: %s", o.code, o.err)
			}
			if config := w.bucket.texts(w.world)["imgbackup.json"]; !bytes.Contains(config, []byte(`"single_writer": true`)) {
				t.Errorf("the promise is not in %s", config)
			}
			for i, mode := range []string{"full", "incremental"} {
				name := fmt.Sprintf("s%d", i)
				if o := w.outcome(w.child(nil, w.backup(name, "--mode", mode)...)); o.code != exitDone {
					t.Fatalf("exit status %d: %s", o.code, o.err)
				}
				w.want[name] = map[string]digest{"vda": w.now["vda"]}
				w.guest("vda", fmt.Sprintf("write -P %d 200k 100k", 20+i))
				w.look("vda")
			}
			o = w.outcome(w.child(nil, w.backup("s1")...))
			if o.code != exitTaken {
				t.Errorf("a name that is taken: exit status %d: %s", o.code, o.err)
			}
			w.verify("s0", "s1")
		})
	}
}
