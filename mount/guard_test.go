// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

// TestGuardOfNothing: what somebody else has mounted in the place of what is mounted no more stays.
func TestGuardOfNothing(t *testing.T) {
	t.Parallel()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	there := strings.Fields(string(mounts))[2]
	for device, want := range map[string]bool{there: true, "0:999999": false} {
		dir := t.TempDir()
		helper, called := filepath.Join(dir, "helper"), filepath.Join(dir, "called")
		testkit.Program(t, helper, "#!/bin/sh\n: >"+called+"\n")
		g, err := startGuard(helper, dir, device)
		if err != nil {
			t.Fatal(err)
		}
		if err := g.unmount(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(called); (err == nil) != want {
			t.Errorf("device %s, of which one is %s: unmounted is %t", device, there, err == nil)
		}
	}
}
