// SPDX-License-Identifier: Apache-2.0

package s3_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/objstoretest"
	"github.com/imgbackup/imgbackup/objstore/retry"
	"github.com/imgbackup/imgbackup/objstore/s3"
	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// wantRefused checks that all operations fail for good, in one line that has
// the words, and that no error is an answer.
func wantRefused(t *testing.T, s objstore.Store, words ...string) {
	t.Helper()
	for op, err := range objstoretest.Operations(t, s, "object") {
		if err == nil || errors.Is(err, objstore.ErrNotFound) || errors.Is(err, objstore.ErrExists) || !objstore.Permanent(err) {
			t.Errorf("%s: %v, want to be refused", op, err)
			continue
		}
		wantLine(t, err, words...)
	}
}

func wantLine(t *testing.T, err error, words ...string) {
	t.Helper()
	text := err.Error()
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("%q is not in %q", word, text)
		}
	}
	for _, secret := range []string{s3test.SecretKey, "wrong-secret", "hunter2"} {
		if strings.Contains(text, secret) {
			t.Errorf("a secret is in %q", text)
		}
	}
	if strings.ContainsAny(text, "\n\r") || len(text) > 500 {
		t.Errorf("more than a line: %q", text)
	}
}

func testS3Credentials(t *testing.T, server *s3test.Server) {
	bucket := server.Bucket()
	for _, c := range []struct{ access, secret, word string }{
		{"nobody", "wrong-secret", "AWS_ACCESS_KEY_ID"},
		{s3test.AccessKey, "wrong-secret", "AWS_SECRET_ACCESS_KEY"},
	} {
		config := server.Config(bucket, "p")
		config.Credentials = credentials.NewStaticV4(c.access, c.secret, "")
		wantRefused(t, retry.New(openS3(t, config), quick), c.word)
	}
}

func testS3NoBucket(t *testing.T, server *s3test.Server) {
	s := retry.New(openS3(t, server.Config("no-such-bucket", "p")), quick)
	wantRefused(t, s, "NoSuchBucket", "there is no bucket no-such-bucket at "+server.Endpoint, "make the bucket")
	if p := s.(objstore.Prober); !objstore.Permanent(p.Probe(t.Context())) {
		t.Error("a probe of a missing bucket goes on")
	}
}

func testS3Refusals(t *testing.T, server *s3test.Server) {
	for how, words := range map[s3test.How][]string{
		s3test.Skewed: {"RequestTimeTooSkewed", "clock"},
		s3test.Full:   {"is full", "make room"},
	} {
		proxy := s3test.NewProxy(t, server, s3test.Fault{How: how})
		wantRefused(t, retry.New(openS3(t, proxy.Config(server, server.Bucket(), "")), quick), words...)
		for _, method := range []string{http.MethodPut, http.MethodDelete} {
			if n := proxy.Count(method); n > 2 {
				t.Errorf("%d %s requests: it was tried again", n, method)
			}
		}
	}
}

// Credentials that may only read: what they can do works, the rest is told.
func TestS3ReadOnly(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.MinIO)
	bucket := server.Bucket()
	writer := openS3(t, server.Config(bucket, "p"))
	if err := writer.Put(t.Context(), "object", strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Create}); err != nil {
		t.Fatal(err)
	}
	c := server.Config(bucket, "p")
	c.Credentials = server.ReadOnly(bucket)
	s := retry.New(openS3(t, c), quick)
	if got, err := objstore.ReadAll(t.Context(), s, "object", 10); string(got) != "x" || err != nil {
		t.Errorf("read: %q, %v", got, err)
	}
	for info, err := range s.List(t.Context(), "") {
		if info.Key != "object" || err != nil {
			t.Errorf("list: %+v, %v", info, err)
		}
	}
	for _, key := range []string{"object", "new"} {
		for op, err := range map[string]error{
			"s3:PutObject":    s.Put(t.Context(), key, strings.NewReader("y"), objstore.PutOptions{Mode: objstore.Replace}),
			"s3:DeleteObject": s.Delete(t.Context(), key),
			"DeleteObject":    objstore.DeleteBatch(t.Context(), s, []string{key}),
		} {
			if err == nil || !objstore.Permanent(err) {
				t.Errorf("%s: %v", op, err)
				continue
			}
			wantLine(t, err, "AccessDenied", op, bucket)
		}
	}
	if _, err := s.Stat(t.Context(), "absent"); !errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("stat of an absent object: %v", err)
	}
}

func TestS3TLS(t *testing.T) {
	t.Parallel()
	server := s3test.StartTLS(t, s3test.MinIO)
	c := server.Config(server.Bucket(), "p")
	s := openS3(t, c)
	if err := s.Put(t.Context(), "object", strings.NewReader("x"), objstore.PutOptions{Mode: objstore.Create}); err != nil {
		t.Fatal(err)
	}
	if err := s.Probe(t.Context()); err != nil {
		t.Error(err)
	}
	c.CAFile = ""
	wantRefused(t, retry.New(openS3(t, c), quick), "IMGBACKUP_S3_CA_FILE", server.Endpoint)
	c.CAFile = server.CAFile + ".missing"
	if _, err := s3.Open(c); err == nil || !strings.Contains(err.Error(), c.CAFile) {
		t.Errorf("a file of authorities that is missing: %v", err)
	}
}

func TestS3NotTLS(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	plain := &http.Server{Handler: http.NotFoundHandler()}
	go func() { _ = plain.Serve(l) }()
	defer plain.Close()
	c := s3.Config{
		Bucket: "bucket", Endpoint: "https://" + l.Addr().String(), Region: s3test.Region,
		Credentials: credentials.NewStaticV4("a", "hunter2", ""),
	}
	wantRefused(t, retry.New(openS3(t, c), quick), "http://", c.Endpoint)
}

func TestS3NobodyThere(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	c := s3.Config{
		Bucket: "bucket", Endpoint: "http://" + l.Addr().String(), Region: s3test.Region,
		Credentials: credentials.NewStaticV4("a", "hunter2", ""),
	}
	s := openS3(t, c)
	for op, err := range objstoretest.Operations(t, s, "object") {
		if err == nil || objstore.Permanent(err) || errors.Is(err, objstore.ErrNotFound) {
			t.Errorf("%s: %v, want what may change", op, err)
			continue
		}
		wantLine(t, err, c.Endpoint, "is the server running")
	}
}

func TestPermanent(t *testing.T) {
	t.Parallel()
	wrap := func(err error) error { return fmt.Errorf("store a: %w", err) }
	for _, c := range []struct {
		err  error
		want bool
	}{
		{objstore.ErrNotFound, true},
		{objstore.ErrExists, true},
		{objstore.ErrTooLarge, true},
		{io.ErrUnexpectedEOF, false},
		{os.ErrDeadlineExceeded, false},
		{&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, false},
		{errors.New("anything"), false},
		{&s3.Error{Code: "SlowDown", Status: 503}, false},
		{&s3.Error{Code: "InternalError", Status: 500}, false},
		{&s3.Error{Code: "RequestTimeout", Status: 400}, false},
		{&s3.Error{Code: "ConditionalRequestConflict", Status: 409}, false},
		{&s3.Error{Code: "BadDigest", Status: 400}, false},
		{&s3.Error{Code: "Too Many", Status: 429}, false},
		{&s3.Error{Code: "AccessDenied", Status: 403}, true},
		{&s3.Error{Code: "NoSuchBucket", Status: 404}, true},
		{&s3.Error{Code: "PreconditionFailed", Status: 412}, true},
		{&s3.Error{Code: "RequestTimeTooSkewed", Status: 403}, true},
		{&s3.Error{Code: "NotImplemented", Status: 501}, true},
		{&s3.Error{Code: "XMinioStorageFull", Status: 507}, true},
	} {
		if got := objstore.Permanent(wrap(c.err)); got != c.want {
			t.Errorf("%v: permanent %v, want %v", c.err, got, c.want)
		}
	}
}
