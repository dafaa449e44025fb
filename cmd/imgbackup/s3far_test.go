// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/minio/minio-go/v7"

	"github.com/imgbackup/imgbackup/internal/farlink"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// farWorld is a disk of noise, and programs that back it up into a bucket.
type farWorld struct {
	testing.TB
	server *s3test.Server
	bucket string
	dir    string
	disk   []byte
}

func newFarWorld(t *testing.T, size int64) *farWorld {
	w := &farWorld{TB: t, server: s3test.Start(t, s3test.MinIO), dir: t.TempDir()}
	w.bucket = w.server.Bucket()
	noise(t, filepath.Join(w.dir, "a.raw"), size)
	var err error
	if w.disk, err = os.ReadFile(filepath.Join(w.dir, "a.raw")); err != nil {
		t.Fatal(err)
	}
	return w
}

// run runs the program with a repository of these options, in the server at an endpoint.
func (w *farWorld) run(endpoint, query string, args ...string) (code int, stderr string) {
	w.Helper()
	cmd := exec.CommandContext(w.Context(), "imgbackup", args...)
	cmd.Dir = w.dir
	cmd.Env = append(append(os.Environ(), w.server.Env()...), "AWS_ENDPOINT_URL_S3="+endpoint,
		"IMGBACKUP_REPO=s3://"+w.bucket+"/r"+query, cacheVar+"=off", delay+"=2ms", "TMPDIR="+w.dir)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		w.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), errs.String()
}

func (w *farWorld) must(endpoint, query string, args ...string) {
	w.Helper()
	if code, stderr := w.run(endpoint, query, args...); code != exitDone || stderr != "" {
		w.Fatalf("%q: exit status %d: %s", args, code, stderr)
	}
}

// link is a way to the server that counts its requests, and refuses those above most.
func (w *farWorld) link(most int) (endpoint string, l *farlink.Link) {
	w.Helper()
	l, err := farlink.Listen("127.0.0.1:0", strings.TrimPrefix(w.server.Endpoint, "http://"), farlink.Options{Busy: true, Most: most})
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(l.Close)
	return "http://" + l.Address(), l
}

// TestS3Connections: no more requests are at work at once than allowed, more than one is,
// and a store that refuses more than it likes is nobody's concern.
func TestS3Connections(t *testing.T) {
	t.Parallel()
	w := newFarWorld(t, 40<<20)
	// Of the writers that init has meet, some are refused.
	endpoint, l := w.link(3)
	if w.must(endpoint, "", "init"); l.Stats().Refused == 0 {
		t.Error("init was refused nothing")
	}
	for _, c := range []struct {
		flags      []string
		bears      int
		least, all int // requests at once
	}{
		{[]string{"--connections", "1"}, 0, 1, 1},
		{[]string{"--connections", "5"}, 0, 3, 5},
		{nil, 3, 2, 3},
	} {
		endpoint, l := w.link(c.bears)
		with := func(args ...string) []string { return append(args, c.flags...) }
		w.must(endpoint, "", with("backup", domain, "--disk", "vda=a.raw,format=raw", "--mode", "full")...)
		w.must(endpoint, "", with("restore", domain, "--output", "out")...)
		w.must(endpoint, "", with("check", "--read-data")...)
		s := l.Stats()
		if s.Requests < c.least || s.Requests > c.all {
			t.Errorf("%+v: %d requests at once", c, s.Requests)
		}
		if (s.Refused > 0) != (c.bears > 0) {
			t.Errorf("%+v: %d requests were refused", c, s.Refused)
		}
		if got, err := os.ReadFile(filepath.Join(w.dir, "out", "vda.raw")); err != nil || !bytes.Equal(got, w.disk) {
			t.Errorf("%+v: restored to other bytes: %v", c, err)
		}
		if err := os.RemoveAll(filepath.Join(w.dir, "out")); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []string{"0", "257", "-1"} {
		if code, stderr := w.run(w.server.Endpoint, "", "list", "--connections", n); code != exitUsage || !strings.Contains(stderr, "1 to 256") {
			t.Errorf("--connections %s: exit status %d: %s", n, code, stderr)
		}
	}
}

// TestS3StorageClasses: each kind of object is stored in the class that is asked for; one that
// has become cold is an outage with what to do, and a backup goes on without it.
func TestS3StorageClasses(t *testing.T) {
	t.Parallel()
	w := newFarWorld(t, 3<<20)
	const query = "?packclass=REDUCED_REDUNDANCY&mapclass=STANDARD"
	backup := []string{"backup", domain, "--disk", "vda=a.raw,format=raw", "--mode", "full"}
	w.must(w.server.Endpoint, query, "init")
	w.must(w.server.Endpoint, query, backup...)
	seen := make(map[string]bool)
	for o := range w.server.Client().ListObjects(context.Background(), w.bucket, minio.ListObjectsOptions{Recursive: true}) {
		kind := strings.Split(o.Key, "/")[1]
		seen[kind] = true
		info, err := w.server.Client().StatObject(context.Background(), w.bucket, o.Key, minio.StatObjectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		want := ""
		if kind == "packs" {
			want = "REDUCED_REDUNDANCY"
		}
		if got := info.Metadata.Get("X-Amz-Storage-Class"); got != want {
			t.Errorf("%s is in class %q, want %q", o.Key, got, want)
		}
	}
	if !seen["packs"] || !seen["maps"] || !seen["domains"] {
		t.Errorf("only %v were stored", seen)
	}
	for _, class := range []string{"GLACIER", "deep_archive", "a b"} {
		if code, _ := w.run(w.server.Endpoint, "?packclass="+strings.ReplaceAll(class, " ", "%20"), "list"); code != exitUsage {
			t.Errorf("packclass=%s: exit status %d", class, code)
		}
	}

	cold := s3test.NewProxy(t, w.server, s3test.Fault{How: s3test.Cold, Method: http.MethodGet, Key: "/packs/"})
	for _, args := range [][]string{
		{"restore", domain, "--output", "out"},
		{"restore", domain, "--output", "out", "--skip-damaged"},
		{"check", "--read-data"},
	} {
		code, stderr := w.run(cold.URL, query, args...)
		if code != exitFailed || strings.Contains(stderr, "damage found") {
			t.Errorf("%q of a cold pack: exit status %d: %s", args, code, stderr)
		}
		if !strings.Contains(stderr, "aws s3api restore-object --bucket "+w.bucket+" --key r/packs/") {
			t.Errorf("%q of a cold pack does not say what to do: %s", args, stderr)
		}
	}
	if _, err := os.Stat(filepath.Join(w.dir, "out")); err == nil {
		t.Error("a restore that failed left its folder")
	}
	w.disk[5]++
	if err := os.WriteFile(filepath.Join(w.dir, "a.raw"), w.disk, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, stderr := w.run(cold.URL, query, backup...); code != exitDone || !strings.Contains(stderr, "stored again") {
		t.Errorf("a backup beside cold packs: exit status %d: %s", code, stderr)
	}
	w.must(w.server.Endpoint, query, "check", "--read-data")
}
