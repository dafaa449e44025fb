// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"syscall"
)

// guard is a process that unmounts: it waits until the end of this one, however that comes
// about, or until it is told to. This one can't do it where it has given up all rights that
// it needs no more, fusermount's among them.
type guard struct {
	cmd   *exec.Cmd
	pipe  io.WriteCloser
	said  strings.Builder
	mount string
}

// The guard reads a line, which says that there is nothing to unmount, or the end of the pipe.
// What is still open is no reason to stay: with this process its files are dead. Where the file system of that device
// is mounted nowhere any more (somebody has, but files of it are open), what is there now is somebody else's.
const guarding = `read -r line && exit 0; grep -q "^[0-9]* [0-9]* $2 " /proc/self/mountinfo || exit 0; exec "$0" -u -z -q -- "$1"`

// findHelper returns the path of the program that mounts and unmounts for everybody.
func findHelper() (string, error) {
	for _, name := range []string{"fusermount3", "fusermount"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("there is no fusermount3, which mounts for users: install the package fuse3")
}

// startGuard starts the guard of the file system at dir, whose device is given as /proc has it.
func startGuard(helper, dir, device string) (*guard, error) {
	g := &guard{cmd: exec.Command("/bin/sh", "-c", guarding, helper, dir, device), mount: dir}
	g.cmd.Dir = "/"
	g.cmd.Stderr = &g.said
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // what is typed to end us is not for it
	var err error
	if g.pipe, err = g.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := g.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start what unmounts at the end: %w", err)
	}
	return g, nil
}

// unmount has the guard unmount, and waits for it.
func (g *guard) unmount() error {
	_ = g.pipe.Close() // which it waits for
	if err := g.cmd.Wait(); err != nil {
		return fmt.Errorf("unmount %s: %w: %s", g.mount, err, strings.TrimSpace(g.said.String()))
	}
	return nil
}

// dismiss ends the guard of what somebody else has unmounted.
func (g *guard) dismiss() error {
	_, err := io.WriteString(g.pipe, "unmounted\n")
	return errors.Join(err, g.pipe.Close(), g.cmd.Wait())
}
