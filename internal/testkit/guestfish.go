// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// It has a command without its dash in $1, and the marks of a session are dealt with.
const guestfish = `#!/bin/bash
answer() {
  case "$1" in
  %s
  get-path) echo "${0%%/*}/fixed" ;;
  version) printf 'major: 1\nminor: 50\nrelease: 2\nextra: \n' ;;
  list-devices) echo /dev/sda ;;
  esac
}
while read -r line; do
  set -- ${line#-}
  case "$line" in
  "echo mark-"*) echo "$2" ;;
  "-mark-"*) echo "$1: unknown command" >&2 ;;
  *) answer "$@" ;;
  esac
done
`

// Guestfish makes a program that takes commands as guestfish does, knows of one disk, and
// answers as these cases of a shell say ("x) echo abc ;;"). It can be run by any user. The
// folder it lies in is the test's own.
func Guestfish(t testing.TB, cases string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "guestfish")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	fixed := filepath.Join(dir, "fixed") // its appliance
	err = errors.Join(os.Chmod(dir, 0o755), os.Mkdir(fixed, 0o755))
	for _, name := range []string{"README.fixed", "kernel", "initrd", "root"} {
		err = errors.Join(err, os.WriteFile(filepath.Join(fixed, name), nil, 0o600))
	}
	program := filepath.Join(dir, "guestfish")
	if err != nil {
		t.Fatal(err)
	}
	Program(t, program, fmt.Sprintf(guestfish, cases))
	return program
}
