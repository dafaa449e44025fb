// SPDX-License-Identifier: Apache-2.0

// Command imgbackup backs up the disks of shut-down QEMU/KVM virtual machines,
// fully and incrementally, and restores them at any checkpoint.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/internal/memory"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/retry"
)

func main() {
	confine.KeepMemory()
	os.Exit(run(os.Args[1:], program{in: os.Stdin, out: os.Stdout, err: os.Stderr, memory: limitMemory(), alone: true, journal: newJournal()}))
}

// limitMemory finds out how much memory there is. The garbage collector is made to work
// harder instead of letting the heap grow beyond, unless a person has said what it is to do.
func limitMemory() memory.Budget {
	budget, given := memory.Find()
	if !given {
		debug.SetMemoryLimit(budget.Heap())
	}
	return budget
}

// program is what a command needs of the world around it.
type program struct {
	in       io.Reader
	out, err io.Writer
	// data is out itself, for the bytes of a disk; out is for results from the
	// moment that a command runs.
	data io.Writer
	// step is told the steps of a backup's writing order; nil outside tests.
	step func(name string)
	// wrap is put around every store; nil outside tests.
	wrap func(objstore.Store) objstore.Store
	// cache is where what repositories hold is kept; empty: as the environment says.
	cache string
	// indexEvery is archive.WriterOptions'; the default outside tests.
	indexEvery int64
	// retry is how long stores are given to come back; the defaults outside
	// tests.
	retry retry.Options
	// memory is how much a run may take; as much as usual outside main and some tests.
	memory memory.Budget
	// workFactor is scrypt's, as a logarithm, for what is made with a passphrase; age's
	// outside tests.
	workFactor int
	// alone: the process is for this command, which may restrict it for good; so it is in main.
	alone bool
	// definitions is where libvirt keeps its domains; its own folder outside tests.
	definitions string
	// managersRoot stands for / where other managers keep their VMs; empty outside tests.
	managersRoot string
	// serving is set as soon as clients can connect: a server ends by a signal as a
	// matter of course.
	serving *atomic.Bool
	// journal, if any, is where messages go instead of err.
	journal *slog.Logger
	// events is the stream of --progress json; nil where there can be none.
	events *events
}

// run executes one command line and returns the exit status.
func run(args []string, p program) int {
	// A reader of our output that goes away must not end a backup half way.
	signal.Ignore(unix.SIGPIPE)
	tryProcesses()
	p.events, p.serving = &events{}, &atomic.Bool{}
	p.data, p.out = p.out, &results{out: p.out}
	ctx, stop := interruptible(p)
	defer stop()

	root := newRoot(p)
	root.SetArgs(args)
	root.SetIn(p.in)
	root.SetOut(p.out)
	root.SetErr(p.err)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		if err := p.events.end(exitDone, nil, ""); err != nil {
			p.say("note: not all events could be written: %v", err)
		}
		return exitDone
	}
	code, text := exitCode(ctx, err), explain(ctx, err)
	p.tell(slog.LevelError, text)
	if code == exitUsage && errors.Is(err, usage.ErrWrong) && !p.events.hasStderr() {
		if cmd.Name() == "help" {
			cmd = cmd.Root()
		}
		hint := fmt.Sprintf("Run '%s --help' for usage.", cmd.CommandPath())
		if errors.As(err, new(configWrong)) {
			hint = "imgbackup-config(5) explains every key; imgbackup config example prints a configuration."
		}
		fmt.Fprintln(p.err, hint)
	}
	// What is wrong with the stream itself is no news after that.
	_ = p.events.end(code, err, text)
	return code
}

// say prints a message to stderr, unless the stream of events is there.
func (p program) say(format string, args ...any) {
	p.tell(slog.LevelWarn, fmt.Sprintf(format, args...))
}

// tell is say of a level, which only the journal has.
func (p program) tell(level slog.Level, text string) {
	if p.events.hasStderr() || p.toJournal(level, text) {
		return
	}
	p.events.alone(func() { fmt.Fprintf(p.err, "imgbackup: %s\n", text) })
}

// tryProcesses lets package os find out how this kernel starts processes, before
// signals are caught: the child that it does so with shares our memory and does
// not block signals, so that one Ctrl-C at that moment would count as two.
func tryProcesses() {
	if self, err := os.FindProcess(os.Getpid()); err == nil {
		_ = self.Release()
	}
}

// waitForChildren returns at a moment when no process of ours runs but those that
// only read: a qemu-img that writes into an image is waited for whatever happens.
func waitForChildren() {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for ; ; <-tick.C {
		tasks, err := filepath.Glob("/proc/self/task/*/children")
		if err != nil || len(tasks) == 0 {
			return // this kernel does not tell
		}
		running := false
		for _, task := range tasks {
			children, err := os.ReadFile(task)
			for _, pid := range strings.Fields(string(children)) {
				// A qemu-nbd only reads for us, and ends with us.
				name, nerr := os.ReadFile("/proc/" + pid + "/comm")
				running = running || err == nil && (nerr != nil || string(name) != "qemu-nbd\n")
			}
		}
		if !running {
			return
		}
	}
}

// tellTime is how long a signal's effect waits for somebody to read what is told
// of it.
const tellTime = time.Second

// inTime waits for tell to end, but not long: whoever does not read what we write,
// and so holds it up, must not keep us from being stopped.
func inTime(tell func()) {
	told := make(chan struct{})
	go func() {
		defer close(told)
		tell()
	}()
	select {
	case <-told:
	case <-time.After(tellTime):
	}
}

// heeded are the signals that end the program. Those that were ignored when it was
// started stay so: by nohup, or in the background of a script.
func heeded() []os.Signal {
	signals := []os.Signal{unix.SIGTERM}
	for _, sig := range []os.Signal{unix.SIGINT, unix.SIGHUP} {
		if !signal.Ignored(sig) {
			signals = append(signals, sig)
		}
	}
	return signals
}

// interruptible returns a context that the first of the heeded signals cancels. A second one ends the program as soon as no qemu-img runs; what it
// leaves behind is settled by the next run.
func interruptible(p program) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, heeded()...)
	quit := make(chan struct{})
	go func() {
		select {
		case sig := <-signals:
			inTime(func() {
				p.events.tell(event{Event: "interrupted", Signal: sig.String()})
				if !p.serving.Load() {
					p.say("%v: tidying up; a second signal stops at once", sig)
				}
			})
			cancel(errInterrupted)
		case <-quit:
			return
		}
		select {
		case <-signals:
			inTime(func() {
				if !p.serving.Load() {
					p.say("stopping as soon as no qemu-img is writing to an image")
				}
			})
			waitForChildren()
			inTime(func() {
				_ = p.events.end(exitInterrupted, errInterrupted, "stopped at once; the next run tidies up")
			})
			os.Exit(exitInterrupted)
		case <-quit:
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(quit)
		cancel(nil)
	}
}
