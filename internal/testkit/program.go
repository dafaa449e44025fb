// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"os"
	"syscall"
	"testing"
)

// Program writes a program, that any user may run, mostly a script. Nothing is
// started by this process meanwhile: a child would have the file open for writing until it has become
// another program, and to run the file would be refused until then (ETXTBSY).
func Program(t testing.TB, path, text string) {
	t.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}
