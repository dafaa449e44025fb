// SPDX-License-Identifier: Apache-2.0

package record

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

// TestSignEnvironment: who signs is told where its agent is, and no secret of the repository.
func TestSignEnvironment(t *testing.T) {
	dir := t.TempDir()
	testkit.Program(t, filepath.Join(dir, "ssh-keygen"), "#!/bin/sh\nenv\n")
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("SSH_AUTH_SOCK", "/agent")
	for _, name := range []string{"AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "IMGBACKUP_IDENTITY"} {
		t.Setenv(name, "secret")
	}
	out, err := Sign(t.Context(), "key", nil)
	if err != nil || strings.Contains(string(out), "secret") || !strings.Contains(string(out), "SSH_AUTH_SOCK=/agent") {
		t.Errorf("%v: %s", err, out)
	}
}
