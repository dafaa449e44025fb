// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"os/exec"
	"testing"
)

// What a start costs, beside one that is not confined.
func BenchmarkStart(b *testing.B) {
	for name, run := range map[string]func(*exec.Cmd) error{
		"plain": (*exec.Cmd).Run,
		"confined": func(cmd *exec.Cmd) error {
			p, err := Start(cmd, Access{})
			if err != nil {
				return err
			}
			return p.Wait()
		},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := run(exec.Command("/bin/true")); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
