// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/confine"
)

// program is one of QEMU's programs with its arguments.
type program struct {
	name  string // to look up in PATH, or a path
	args  []string
	dir   string     // where it runs; empty: where we do
	files []*os.File // that it holds as long as it runs

	access confine.Access
}

// result is a program that has ended.
type result struct {
	status int            // exit status; -1: ended by a signal
	signal syscall.Signal // the one that ended it
	stdout []byte
	stderr string
}

// maxOutput bounds what is read of a program's output.
const maxOutput = 64 << 10

// find looks the program up.
func (p program) find() (path string, err error) {
	path, err = exec.LookPath(p.name)
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%s is not installed; it is in the package qemu-utils (Debian, Ubuntu), qemu-img (Fedora, RHEL, Arch) or qemu-tools (SUSE): %w", p.name, err)
	}
	return path, err
}

// command is the program in a session of its own, which no Ctrl-C reaches, without an
// environment. It ends with us, unless it is detached.
func (p program) command(detached bool) (*exec.Cmd, error) {
	path, err := p.find()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(path, p.args...)
	cmd.Env = []string{} // nil would be ours
	cmd.Dir = p.dir
	cmd.ExtraFiles = p.files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if !detached {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	return cmd, nil
}

// run runs the program, and kills it when ctx ends.
func (p program) run(ctx context.Context) (result, error) { return p.runAs(ctx, false) }

// runDetached runs the program to its end, whatever becomes of us or of ctx, which can
// only prevent it.
func (p program) runDetached(ctx context.Context) (result, error) { return p.runAs(ctx, true) }

// runAs lets the output go into files in memory: a pipe would break when we are killed.
func (p program) runAs(ctx context.Context, detached bool) (run result, err error) {
	cmd, err := p.command(detached)
	if err != nil {
		return run, err
	}
	stdout, err := memoryFile("stdout")
	if err != nil {
		return run, err
	}
	defer closeRead(stdout)
	stderr, err := memoryFile("stderr")
	if err != nil {
		return run, err
	}
	defer closeRead(stderr)
	if err := ctx.Err(); err != nil {
		return run, err
	}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	process, err := confine.Start(cmd, p.access)
	if err != nil {
		return run, err
	}
	if !detached {
		stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() }) // it may have ended already
		defer stop()
	}
	if err := run.end(cmd, process.Wait()); err != nil {
		return run, err
	}
	if run.stdout, err = readOutput(stdout); err != nil {
		return run, err
	}
	text, err := readOutput(stderr)
	run.stderr = string(text)
	return run, err
}

// end notes how a program ended, of which err came.
func (r *result) end(cmd *exec.Cmd, err error) error {
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return err
	}
	r.status = cmd.ProcessState.ExitCode()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		r.signal = ws.Signal()
	}
	return nil
}

// stream runs the program, which only reads, and hands fn what it writes while it does. It is
// killed when fn returns an error, or ctx ends.
func (p program) stream(ctx context.Context, fn func(out io.Reader) error) (run result, err error) {
	cmd, err := p.command(false)
	if err != nil {
		return run, err
	}
	stderr, err := memoryFile("stderr")
	if err != nil {
		return run, err
	}
	defer closeRead(stderr)
	r, w, err := os.Pipe()
	if err != nil {
		return run, err
	}
	defer closeRead(r)
	cmd.Stdout, cmd.Stderr = w, stderr
	process, err := confine.Start(cmd, p.access)
	closeRead(w) // which it has by now
	if err != nil {
		return run, err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() }) // it may have ended already
	defer stop()
	if fn(r) != nil {
		_ = cmd.Process.Kill()
	}
	closeRead(r) // whatever it still has to say
	if err := run.end(cmd, process.Wait()); err != nil {
		return run, err
	}
	text, err := readOutput(stderr)
	run.stderr = string(text)
	return run, err
}

func memoryFile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate("imgbackup-qemu-"+name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func readOutput(f *os.File) ([]byte, error) {
	return io.ReadAll(io.NewSectionReader(f, 0, maxOutput))
}

// failed is the error of a program that failed.
func (r result) failed(what string) error { return &ExitError{what, r.status, r.said()} }

// said is the beginning of what the program wrote to stderr, for a message.
func (r result) said() string {
	text := strings.TrimSpace(r.stderr)
	switch {
	case text == "":
		return ""
	case len(text) > maxSaid:
		return ": " + strconv.Quote(text[:maxSaid]) + "…"
	}
	return ": " + strconv.Quote(text)
}

// maxSaid is the number of bytes of a program's words that a message shows.
const maxSaid = 512
