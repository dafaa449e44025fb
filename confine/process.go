// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"errors"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// Process is a program that [Start] or [StartApart] has started, and waits for.
type Process struct {
	Cmd   *exec.Cmd     // once Ended is closed, its ProcessState says how
	Ended chan struct{} // is closed when it has ended

	err error // of Wait, then
}

// newProcess takes over what [sys.StartChild] tells of a process that has begun.
func newProcess(cmd *exec.Cmd, ended <-chan error) *Process {
	p := &Process{Cmd: cmd, Ended: make(chan struct{})}
	go func() {
		for err := range ended { // one at most
			p.err = err
		}
		close(p.Ended)
	}()
	return p
}

// Wait waits for the end of the process, and returns what [exec.Cmd.Wait] does.
func (p *Process) Wait() error {
	<-p.Ended
	return p.err
}

// Refused reports whether an error says that a way to be apart is not possible here.
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

// StartApart starts a program in the first of the ways that is possible, and returns
// which. command makes it anew for each that is tried.
func StartApart(command func(Apart) *exec.Cmd, how []Apart) (*Process, Apart, error) {
	keepDescriptors()
	var last error
	for _, c := range how {
		cmd := command(c)
		c.apply(cmd)
		started, ended := sys.StartChild(cmd)
		if last = <-started; last != nil {
			if Refused(last) {
				continue
			}
			return nil, c, last
		}
		return newProcess(cmd, ended), c, nil
	}
	return nil, Apart{}, last
}

// Kill ends the process and waits for its end. Once more is no harm.
func (p *Process) Kill() {
	_ = p.Cmd.Process.Kill() // it may have ended already
	<-p.Ended
}
