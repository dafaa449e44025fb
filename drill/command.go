// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/internal/sys"
)

// Command is a program of the user's: its exit status is the verdict.
type Command struct {
	Run     []string       // program and arguments
	Expect  *regexp.Regexp // shows in what it writes; nil: nothing is asked for
	Timeout time.Duration  // 0: 10 minutes
	Hidden  []string       // variables of the environment that it does not get, beside credentials
}

// command is the step that runs it.
type command struct{ Command }

// Step is the step that runs the program.
func (c Command) Step() Step { return command{c} }

func (command) Name() string { return record.StepCommand }

const (
	commandTimeout = 10 * time.Minute
	// maxOutput is how much of a program's output is kept and looked at, bytes.
	maxOutput = 1 << 20
)

const todoCommand = "look at its output, which is kept with the report (--report DIR); the program decides what it means"

func (c command) Run(ctx context.Context, s *Subject) (Result, error) {
	served, err := s.Serve(ctx)
	if err != nil {
		return Result{}, err
	}
	timeout := c.Timeout
	if timeout == 0 {
		timeout = commandTimeout
	}
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	out, before := &sys.Head{Most: maxOutput}, s.Read()
	cmd := exec.CommandContext(limited, c.Command.Run[0], c.Command.Run[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.Scratch, out, out
	cmd.Env = append(confine.Environment(c.Hidden...), c.environment(s, served)...)
	// A group of its own, which ends with it, and with us.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second
	started, ended := sys.StartChild(cmd)
	if err = <-started; err == nil {
		err = <-ended
	}
	if cmd.Process != nil {
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) // what it has left running
		endMarked(socketVariable + served.Socket)
	}
	if kerr := os.WriteFile(filepath.Join(s.Keep, "command.txt"), out.Bytes(), 0o600); kerr != nil {
		return Result{}, kerr
	}
	res := c.judge(ctx, limited, err, out, timeout)
	if res.Status == "" {
		return Result{}, context.Cause(ctx)
	}
	if res.Status == record.Failed && s.Fault() != nil {
		return s.Damage(ctx, s.Fault())
	}
	res.Bytes = s.Read() - before
	res.Details = map[string]string{"output_bytes": fmt.Sprint(out.Total())}
	return res, nil
}

// judge says what the program's end means; no status: ctx ended it.
func (c command) judge(ctx, limited context.Context, err error, out *sys.Head, timeout time.Duration) Result {
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return Result{}
	case limited.Err() != nil:
		return Fail(fmt.Sprintf("%s did not end within %s", c.Command.Run[0], timeout), "give it more time by --command-timeout, if that is what it needs")
	case errors.As(err, &exit):
		return Fail(fmt.Sprintf("%s: %v%s", c.Command.Run[0], exit, lastLine(out)), todoCommand)
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		return Skip(fmt.Sprintf("%s could not be run: %v", c.Command.Run[0], err), "name a program that is there and may be run")
	case c.Expect != nil && !c.Expect.Match(out.Bytes()):
		return Fail(fmt.Sprintf("%s: nothing of what it wrote matches %s%s", c.Command.Run[0], c.Expect, lastLine(out)), todoCommand)
	}
	return Pass(c.Command.Run[0] + ": exit status 0")
}

// socketVariable names the socket, which is this step's alone.
const socketVariable = "IMGBACKUP_DRILL_SOCKET="

// environment tells the program what it is about.
func (c command) environment(s *Subject, served *Served) []string {
	var names []string
	env := []string{
		"IMGBACKUP_DRILL_DOMAIN=" + s.Manifest.Domain,
		"IMGBACKUP_DRILL_CHECKPOINT=" + s.Manifest.Checkpoint,
		"IMGBACKUP_DRILL_CHECKPOINT_UUID=" + s.Manifest.UUID,
		socketVariable + served.Socket,
	}
	for _, d := range served.Disks {
		names = append(names, d.Disk)
		env = append(env, "IMGBACKUP_DRILL_URI_"+variable(d.Disk)+"="+d.URI)
	}
	for _, r := range s.Restored {
		env = append(env, "IMGBACKUP_DRILL_PATH_"+variable(r.Disk)+"="+r.Path)
	}
	return append(env, "IMGBACKUP_DRILL_DISKS="+strings.Join(names, " "))
}

// variable is a disk's name as part of a variable's: what it cannot have is _.
func variable(disk string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x80 && (r == '_' || r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z') {
			return r
		}
		return '_'
	}, disk)
}

// lastLine is the last line that was kept, for a message.
func lastLine(h *sys.Head) string {
	text := strings.TrimSpace(h.String())
	if text == "" {
		return ""
	}
	line := text[strings.LastIndexByte(text, '\n')+1:]
	return fmt.Sprintf(": %.200q", line)
}
