// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// TestNothingMayBeRemoved: who may store and not remove can back up and copy, again
// and again, and is told once what stays. To remove leases and intents is enough for
// nothing to stay.
func TestNothingMayBeRemoved(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.MinIO)
	for _, c := range []struct {
		name   string
		delete []string // what may be removed
		notes  int
	}{
		{"nothing", nil, 1},
		{"leases and intents", []string{"*/leases/*", "*/intents/*"}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b, dir := newBucket(server), t.TempDir()
			statements := []string{s3test.Allow(b.name, "", "s3:ListBucket", "s3:GetObject", "s3:PutObject")}
			for _, pattern := range c.delete {
				statements = append(statements, s3test.Allow(b.name, pattern, "s3:DeleteObject"))
			}
			restricted := asEnv(t, server.Restricted(statements...))
			tool := func(env []string, name string, args ...string) string {
				t.Helper()
				cmd := exec.CommandContext(t.Context(), name, args...)
				cmd.Dir, cmd.Env = dir, append(append(append(os.Environ(), b.env()...), "IMGBACKUP_REPO="+b.String()), env...)
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Fatalf("%s %q: %v\n%s", name, args, err, out)
				}
				return string(out)
			}
			noise(t, filepath.Join(dir, "noise"), 1<<20)
			tool(nil, "qemu-img", "dd", "-f", "raw", "-O", "qcow2", "if=noise", "of=a.qcow2", "bs=1M")
			tool(nil, "imgbackup", "init")
			for i := range 3 {
				out := tool(restricted, "imgbackup", "backup", domain, "--disk", "vda=a.qcow2,format=qcow2", "--checkpoint", fmt.Sprintf("c%d", i+1))
				if i > 0 && !strings.Contains(out, "incremental since") {
					t.Errorf("backup %d:\n%s", i+1, out)
				}
				if n := strings.Count(out, "s3:DeleteObject"); n != c.notes || strings.Count(out, "note:") != c.notes {
					t.Errorf("backup %d says %d times what may not be removed, want %d:\n%s", i+1, n, c.notes, out)
				}
			}
			if c.notes == 0 {
				b.verifyTidy(t)
			}
			tool(restricted, "imgbackup", "check", "--read-data")

			other := filepath.Join(t.TempDir(), "other")
			tool(nil, "imgbackup", "init", "-r", other)
			tool(nil, "imgbackup", "backup", "-r", other, "db", "--disk", "vda=noise,format=raw", "--checkpoint", "c1")
			if out := tool(restricted, "imgbackup", "copy", "-r", other, "--to", b.String()); strings.Count(out, "s3:DeleteObject") != c.notes {
				t.Errorf("copy:\n%s", out)
			}
			if c.notes > 0 {
				return
			}
			// A prune that may store its mark, and delete nothing, says so, and leaves
			// nothing half-done: who may goes on as if it had not been.
			tool(nil, "imgbackup", "forget", domain, "c1", "c2", "c3")
			cmd := exec.CommandContext(t.Context(), "imgbackup", "prune", "--max-unused", "unlimited")
			cmd.Dir, cmd.Env = dir, append(append(append(os.Environ(), b.env()...), "IMGBACKUP_REPO="+b.String()), restricted...)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "s3:DeleteObject") || !strings.Contains(string(out), "the store refuses to delete") {
				t.Errorf("prune: %v\n%s", err, out)
			}
			if out := tool(nil, "imgbackup", "prune"); strings.Contains(out, "an earlier prune") || !strings.Contains(out, " deleted: ") {
				t.Errorf("prune by who may:\n%s", out)
			}
			tool(nil, "imgbackup", "check", "--read-data")
		})
	}
}

// asEnv is the environment that has these credentials.
func asEnv(t *testing.T, c *credentials.Credentials) []string {
	t.Helper()
	v, err := c.GetWithContext(nil)
	if err != nil {
		t.Fatal(err)
	}
	return []string{"AWS_ACCESS_KEY_ID=" + v.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + v.SecretAccessKey, "AWS_SESSION_TOKEN=" + v.SessionToken}
}
