// SPDX-License-Identifier: Apache-2.0

package s3_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/s3"
)

// What the server's clock shows is kept of each answer, also of one that refuses.
func TestClock(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", at.Format(http.TimeFormat))
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(http.StatusForbidden)
		_, _ = w.Write([]byte(`<?xml version="1.0"?><Error><Code>RequestTimeTooSkewed</Code></Error>`))
	}))
	defer server.Close()
	store, err := s3.Open(s3.Config{Endpoint: server.URL, Bucket: "bucket", Style: "path", Credentials: credentials.NewStaticV4("a", "b", "")})
	if err != nil {
		t.Fatal(err)
	}
	if theirs, _ := store.Clock(); !theirs.IsZero() {
		t.Error("a clock, before anything was asked")
	}
	var refused *s3.Error
	if _, err := objstore.ReadAll(t.Context(), store, "x", 1); !errors.As(err, &refused) {
		t.Fatal(err)
	}
	before := time.Now()
	if theirs, ours := store.Clock(); !theirs.Equal(at) || ours.IsZero() || ours.After(before) {
		t.Errorf("theirs %v, ours %v", theirs, ours)
	}
}
