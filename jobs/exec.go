// SPDX-License-Identifier: Apache-2.0

package jobs

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/internal/sys"
)

// ErrTimeout is the cause of what a step's time limit has ended.
var ErrTimeout = errors.New("it took longer than its time limit")

const (
	// grace is how long a command of others has to end when it was told to.
	grace = 10 * time.Second
	// leftOpen is how long what a command of others has left running may keep its output
	// from ending: a VM may be that.
	leftOpen = time.Second
)

// command is a step of a run, or a part of one.
type command struct {
	*exec.Cmd
	// ours: this program, which may write into images, so that it is never killed.
	ours bool
	// progress, if any, is told how far it is; it is asked for events.
	progress func(done, total int64)
	// step, if any, is told which step begins; it is asked for events.
	step func(name string)
}

// do runs a command as a step, and takes down what came of it. It is told to end (SIGTERM)
// when ctx ends, and waited for: what writes into images is never killed.
func (r *runner) do(ctx context.Context, what, domain string, cmd command, shown []string) Done {
	d := Done{What: what, Domain: domain, Command: shown, Begun: r.Now().UTC()}
	start := time.Now()
	out := &sys.Head{Most: maxResult}
	errs := &lines{each: func(line string) { r.log.line(what, domain, line) }}
	cmd.Stdout, cmd.Stderr = out, errs
	r.log.line(what, domain, "begins: "+ShellWords(shown))
	err := cmd.run(ctx)
	errs.flush()
	d.Seconds = time.Since(start).Seconds()
	d.Status, d.Error = outcome(cmd.ProcessState, err, errs.last)
	if errors.Is(context.Cause(ctx), ErrTimeout) && d.Status != 0 {
		d.Status, d.Error = 1, ErrTimeout.Error()
	}
	if text := out.Bytes(); !out.Cut() && json.Valid(text) {
		d.Result = compact(text)
	}
	level := slog.LevelInfo
	if d.Status != 0 {
		level = slog.LevelWarn // whether it matters is the job's to say
	}
	r.log.to(level, what, domain, fmt.Sprintf("ends: status %d after %.1f s", d.Status, d.Seconds),
		slog.Int("status", d.Status), slog.Float64("seconds", d.Seconds))
	return d
}

// outcome is the exit status of a command, and what went wrong; last is what it said last.
func outcome(state *os.ProcessState, err error, last string) (int, string) {
	switch {
	case state == nil:
		return 1, err.Error()
	case !state.Exited():
		return 1, state.String()
	case state.ExitCode() > 0 && last == "":
		return state.ExitCode(), fmt.Sprintf("exit status %d", state.ExitCode())
	case state.ExitCode() > 0:
		return state.ExitCode(), last
	case err != nil:
		return 1, err.Error() // what it said could not be read
	}
	return 0, ""
}

// run runs a command to its end.
func (c *command) run(ctx context.Context) error {
	c.SysProcAttr = &unix.SysProcAttr{
		Setpgid:   true,         // a terminal's Ctrl-C comes from us, once
		Pdeathsig: unix.SIGTERM, // if we are killed, it tidies up
	}
	if !c.ours {
		c.WaitDelay = leftOpen
	}
	told, err := c.listen()
	if err != nil {
		return err
	}
	started, ended := sys.StartChild(c.Cmd)
	err = <-started
	for _, f := range c.ExtraFiles {
		_ = f.Close() // the child has it
	}
	if err == nil {
		err = c.wait(ctx, ended)
	}
	<-told
	return err
}

func (c *command) wait(ctx context.Context, ended <-chan error) error {
	done := ctx.Done()
	var late <-chan time.Time
	for {
		select {
		case err := <-ended:
			if errors.Is(err, exec.ErrWaitDelay) {
				return nil
			}
			return err
		case <-done:
			done = nil
			c.signal(unix.SIGTERM)
			if !c.ours {
				t := time.NewTimer(grace)
				defer t.Stop()
				late = t.C
			}
		case <-late:
			c.signal(unix.SIGKILL)
		}
	}
}

// signal tells the command to end. With others' goes what they have started; ours does
// that itself, since a qemu-img of it must not be ended.
func (c *command) signal(sig unix.Signal) {
	// That it has just ended is no matter.
	if c.ours {
		_ = c.Process.Signal(sig)
		return
	}
	_ = unix.Kill(-c.Process.Pid, sig)
}

// progressFD is the descriptor that a command of ours writes its events to.
const progressFD = 3

// listen reads the command's events until it has ended; then told is closed.
func (c *command) listen() (told <-chan struct{}, err error) {
	done := make(chan struct{})
	if c.progress == nil && c.step == nil {
		close(done)
		return done, nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	c.ExtraFiles = []*os.File{w}
	go func() {
		defer close(done)
		defer func() { _ = r.Close() }() // only read
		s := bufio.NewScanner(r)
		for s.Scan() {
			var e struct {
				Event, Disk, Step string
				Done, Total       int64
			}
			switch {
			case json.Unmarshal(s.Bytes(), &e) != nil:
			case e.Event == "progress" && e.Disk == "" && c.progress != nil:
				c.progress(e.Done, e.Total)
			case e.Event == "step" && c.step != nil:
				c.step(e.Step)
			}
		}
		// What can't be read must not hold the command up.
		_, _ = io.Copy(io.Discard, r)
	}()
	return done, nil
}

// ask runs a command that takes no time to speak of, and is no step of its own: for limit
// at most. said is what it printed.
func (r *runner) ask(ctx context.Context, cmd *exec.Cmd, limit time.Duration) (d Done, said string) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, ErrTimeout)
	defer cancel()
	out := &sys.Head{Most: maxResult}
	errs := &lines{each: func(line string) { r.log.line(filepath.Base(cmd.Path), "", line) }}
	cmd.Stdout, cmd.Stderr = out, errs
	err := (&command{Cmd: cmd}).run(ctx)
	errs.flush()
	switch d.Status, d.Error = outcome(cmd.ProcessState, err, errs.last); {
	case cmd.ProcessState == nil || !cmd.ProcessState.Exited():
		d.Status = -1
	case out.Cut():
		d.Status, d.Error = -1, "it says too much"
	}
	if d.Status != 0 && errors.Is(context.Cause(ctx), ErrTimeout) {
		d.Status, d.Error = -1, ErrTimeout.Error()
	}
	return d, string(bytes.TrimSpace(out.Bytes()))
}

// hook is a command of the user's. It does not get what opens a repository.
func (r *runner) hook(argv []string, domain string, more ...string) *exec.Cmd {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.Env = append(confine.Environment(r.Config.SecretVariables()...),
		"IMGBACKUP_JOB="+r.run.Job, "IMGBACKUP_RUN="+r.run.ID, "IMGBACKUP_DOMAIN="+domain, "IMGBACKUP_REPO="+r.job.Repository)
	cmd.Env = append(cmd.Env, more...)
	return cmd
}

func compact(text []byte) json.RawMessage {
	var b bytes.Buffer
	if json.Compact(&b, text) != nil {
		return nil
	}
	return b.Bytes()
}
