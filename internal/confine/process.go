// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"errors"
	"math"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// Process is a program that was started, confined.
type Process struct {
	Cmd   *exec.Cmd     // once Ended is closed, its ProcessState says how
	Ended chan struct{} // is closed when it has ended
}

// Refused reports whether an error says that a confinement is not possible here.
func Refused(err error) bool {
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EUSERS)
}

// Program is a command in the folder /, with the environment that every program needs,
// whose output is said; files are its descriptors from 3 on.
func Program(path string, args []string, files []*os.File, said *Said) *exec.Cmd {
	cmd := exec.Command(path, args...)
	cmd.Env = []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH")}
	cmd.Dir = "/"
	cmd.ExtraFiles = files
	cmd.Stdout, cmd.Stderr = said, said
	cmd.WaitDelay = time.Second
	return cmd
}

// Start starts a program with the first of the confinements that is possible, and returns
// which. command makes it anew for each that is tried.
func Start(command func(Confinement) *exec.Cmd, how []Confinement) (*Process, Confinement, error) {
	// What we have inherited from who has started us, and is not meant for anybody else.
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) // kernels before 5.11 can't
	var last error
	for _, c := range how {
		p := &Process{Cmd: command(c), Ended: make(chan struct{})}
		c.apply(p.Cmd)
		started, ended := sys.StartChild(p.Cmd)
		if last = <-started; last != nil {
			if Refused(last) {
				continue
			}
			return nil, c, last
		}
		go func() {
			for range ended { // how it ended is in ProcessState
			}
			close(p.Ended)
		}()
		return p, c, nil
	}
	return nil, Confinement{}, last
}

// Kill ends the process and waits for its end. Once more is no harm.
func (p *Process) Kill() {
	_ = p.Cmd.Process.Kill() // it may have ended already
	<-p.Ended
}
