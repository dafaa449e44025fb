// SPDX-License-Identifier: Apache-2.0

package manager_test

import (
	"testing"

	"github.com/imgbackup/imgbackup/domain/manager"
)

func TestSplit(t *testing.T) {
	t.Parallel()
	for _, domain := range []string{"web", "lima", "xen:web", "Lima:web", ":web", ""} {
		if m, vm, ok := manager.Split(domain); ok || manager.Base(domain) != domain {
			t.Errorf("%q: %q, %q", domain, m, vm)
		}
	}
	for _, m := range manager.All() {
		for _, vm := range []string{"100", "a:b", "web"} {
			got, name, ok := manager.Split(manager.Join(m, vm))
			if !ok || got != m || name != vm || manager.Base(manager.Join(m, vm)) != vm {
				t.Errorf("%s, %s: %q, %q, %v", m, vm, got, name, ok)
			}
		}
	}
	if got := manager.Base("pve:"); got != "pve:" {
		t.Errorf("no name: %q", got)
	}
}
