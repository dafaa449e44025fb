// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"os/exec"
	"runtime"
)

// StartChild starts a process and waits for it. The signal that a process asks for the
// death of its parent (Pdeathsig) comes when the thread ends that started it, so that
// thread is kept. started has the outcome of the start; ended that of [exec.Cmd.Wait],
// and is closed afterwards.
func StartChild(cmd *exec.Cmd) (started, ended <-chan error) {
	begun, done := make(chan error, 1), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		begun <- err
		if err == nil {
			done <- cmd.Wait()
		}
		close(done)
	}()
	return begun, done
}
