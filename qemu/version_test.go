// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

// QEMU's programs tell their versions in words of their own.
func TestParseVersion(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Version{
		"qemu-img version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright (c) 2003-2022\n": {7, 2, 22},
		"qemu-nbd 10.0.2 (Debian 1:10.0.2+ds-2)\nWritten by Anthony Liguori.\n":             {10, 0, 2},
		"QEMU emulator version 8.2.0 (qemu-8.2.0-6.el9)\n":                                  {8, 2, 0},
		"qemu-img version 5.0.94 (v5.1.0-rc4)":                                              {5, 0, 94},
	} {
		v, says, err := parseVersion([]byte(text))
		if err != nil || v != want || !strings.HasPrefix(text, says) || strings.Contains(says, "\n") {
			t.Errorf("%s: %v, %q, %v", text, v, says, err)
		}
	}
	for _, text := range []string{"", "\n", "qemu-img", "qemu-img version x.y.z", "qemu-img version 99999.2.3", "usage: 1.2", "qemu-img-7.2.1"} {
		if v, _, err := parseVersion([]byte(text)); err == nil {
			t.Errorf("%q: %v", text, v)
		}
	}
	for _, c := range []struct {
		a, b Version
		want bool
	}{
		{Version{5, 0, 94}, Version{5, 1, 0}, true}, {Version{5, 1, 0}, Version{5, 1, 0}, false},
		{Version{10, 0, 0}, Version{9, 9, 9}, false}, {Version{4, 1, 0}, Version{4, 1, 1}, true},
	} {
		if c.a.Before(c.b) != c.want {
			t.Errorf("%v before %v: %v", c.a, c.b, !c.want)
		}
	}
}

// What is here is asked, under the same bounds as all of QEMU's programs.
func TestFind(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"qemu-img", "qemu-nbd", "qemu-system-x86_64"} {
		f, err := Find(t.Context(), name)
		if err != nil || f.Version.Before(Version{5, 1, 0}) || !filepath.IsAbs(f.Path) {
			t.Errorf("%s: %+v, %v", name, f, err)
		}
	}
	if _, err := Find(t.Context(), "qemu-none"); !errors.Is(err, exec.ErrNotFound) || !strings.Contains(err.Error(), "is not installed") {
		t.Error(err)
	}
	odd := filepath.Join(t.TempDir(), "odd")
	testkit.Program(t, odd, "#!/bin/sh\nexit 3\n")
	var failed *ExitError
	if _, err := Find(t.Context(), odd); !errors.As(err, &failed) || failed.Status != 3 {
		t.Error(err)
	}
}
