// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// leftTries is how often what a program has left is looked for: one that is ended may have
// just started another.
const leftTries = 100

// endMarked ends the processes that have a variable in their environment, as NAME=value which
// no others have: what a program has left running, also in a session of its own. One that has
// rid itself of its environment is not found.
func endMarked(variable string) {
	for range leftTries {
		if !endSome([]byte(variable)) {
			return
		}
	}
}

// endSome reports whether there were any.
func endSome(variable []byte) (found bool) {
	paths, _ := filepath.Glob("/proc/[0-9]*/environ") // the pattern is right
	for _, path := range paths {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil || pid == os.Getpid() {
			continue
		}
		p, err := os.FindProcess(pid) // from now on its number means no other
		if err != nil {
			continue
		}
		env, err := os.ReadFile(path)
		if err == nil && slices.ContainsFunc(bytes.Split(env, []byte{0}), func(v []byte) bool { return bytes.Equal(v, variable) }) {
			found = p.Kill() == nil || found
		}
		_ = p.Release() // it is not ours to wait for
	}
	return found
}
