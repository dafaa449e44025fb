// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"os/exec"
	"testing"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// What a start costs, beside one that is not confined.
func BenchmarkStart(b *testing.B) {
	for name, start := range map[string]func(*exec.Cmd) (_, _ <-chan error){
		"plain":    sys.StartChild,
		"confined": func(cmd *exec.Cmd) (_, _ <-chan error) { return Start(cmd, Access{}) },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				started, ended := start(exec.Command("/bin/true"))
				if err := <-started; err != nil {
					b.Fatal(err)
				}
				if err := <-ended; err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
