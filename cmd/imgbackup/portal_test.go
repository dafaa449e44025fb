// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/objstore/s3test"
)

// TestPortals: what something on the way to the store answers in its place, with
// the status 200, is neither a stored object nor an empty listing.
func TestPortals(t *testing.T) {
	t.Parallel()
	server := s3test.Start(t, s3test.MinIO)
	for how, name := range map[s3test.How]string{s3test.Portal: "page", s3test.ErrorOK: "error", s3test.Empty: "empty"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, dir := newBucket(server), t.TempDir()
			noise(t, filepath.Join(dir, "a.raw"), 1<<20)
			tool := func(want int, args ...string) string {
				t.Helper()
				cmd := exec.CommandContext(t.Context(), "imgbackup", args...)
				cmd.Dir, cmd.Env = dir, append(append(os.Environ(), b.env()...), "IMGBACKUP_REPO="+b.String())
				out, err := cmd.CombinedOutput()
				if got := cmd.ProcessState.ExitCode(); got != want {
					t.Fatalf("imgbackup %q: %v, want exit status %d\n%s", args, err, want, out)
				}
				return string(out)
			}
			backup := func(want int, checkpoint string) string {
				t.Helper()
				return tool(want, "backup", domain, "--disk", "vda=a.raw,format=raw", "--read-unchanged", "--checkpoint", checkpoint)
			}
			tool(0, "init")
			b.behind(t,
				s3test.Fault{How: how, Method: "PUT", Key: "/packs/", Times: 1},
				s3test.Fault{How: how, Method: "PUT", Key: "/checkpoints/", Times: 1},
			)
			backup(0, "c1")
			b.proxy = ""
			tool(0, "check", "--read-data")

			b.behind(t, s3test.Fault{How: how, Method: "LIST", Key: "domains", Times: 1})
			if out := backup(0, "c2"); !strings.Contains(out, "incremental by content since c1") {
				t.Errorf("after a listing that was none:\n%s", out)
			}
			b.behind(t, s3test.Fault{How: how, Method: "LIST", Times: 1})
			if out := tool(0, "check"); !strings.Contains(out, "checked 2 checkpoints") {
				t.Errorf("check, with a listing that was none:\n%s", out)
			}
		})
	}
}
