// SPDX-License-Identifier: Apache-2.0

package systemd

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/config"
)

// TestDueUnits: the packages' units for all jobs are valid, and may do no more than a job's own.
func TestDueUnits(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	program, err := exec.LookPath("true")
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	var service string
	for _, name := range []string{"imgbackup-due.service", "imgbackup-due.timer"} {
		text, err := os.ReadFile(filepath.Join("../packaging", name))
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, ".service") {
			service = string(text)
			// The program that a unit names must be there for systemd-analyze to be content.
			text = []byte(strings.Replace(service, "ExecStart=/usr/bin/imgbackup ", "ExecStart="+program+" ", 1))
		}
		paths = append(paths, filepath.Join(dir, name))
		if err := os.WriteFile(paths[len(paths)-1], text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// A drill takes the most.
	for _, line := range hardening(config.Job{Drill: &config.Drill{}}) {
		if !strings.Contains(service, "\n"+line+"\n") {
			t.Errorf("imgbackup-due.service has no line %s", line)
		}
	}
	out, err := exec.Command("systemd-analyze", append([]string{"verify", "--man=false", "--recursive-errors=no"}, paths...)...).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	exposure(t, paths[0])
}
