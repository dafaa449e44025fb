// SPDX-License-Identifier: Apache-2.0

package open_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/local"
	"github.com/imgbackup/imgbackup/objstore/open"
)

func TestOpen(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "repo")
	if _, err := open.Open(dir, open.Options{}); !errors.Is(err, objstore.ErrNotFound) {
		t.Errorf("a folder that is absent: %v", err)
	}
	s, err := open.Open(dir, open.Options{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	if l, ok := s.(*local.Store); !ok || l.Close() != nil {
		t.Errorf("a folder is opened as %T", s)
	}
	for _, place := range []string{
		"http://host/x", "gs://bucket", "s3://KEY:hunter2@x",
		"s3:host/bucket", "s3:/bucket/x", "S3:bucket", "sftp:user:hunter2@host:/x", "rclone:remote:x",
	} {
		if _, err := open.Open(place, open.Options{}); !errors.Is(err, usage.ErrWrong) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v, want wrong usage, without the password", place, err)
		}
		if _, err := open.Open(place, open.Options{Create: true}); !errors.Is(err, usage.ErrWrong) {
			t.Errorf("%s, to be made: %v, want wrong usage", place, err)
		}
	}
	// A folder may be called so.
	odd := filepath.Join(t.TempDir(), "sftp:x")
	if _, err := open.Open(odd, open.Options{Create: true}); err != nil {
		t.Error(err)
	}
}
