// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/qemu"
)

// gate holds the program's first qemu-img of one kind until it is let go.
type gate struct {
	t                *testing.T
	dir              string
	arrived, release *os.File
}

// newGate puts a qemu-img into a folder of its own that stops before it does
// what option asks for.
func newGate(t *testing.T, option string) *gate {
	real, err := exec.LookPath("qemu-img")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{t: t, dir: t.TempDir()}
	fifo := func(name string) *os.File {
		path := filepath.Join(g.dir, name)
		if err := syscall.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	g.arrived, g.release = fifo("arrived"), fifo("go")
	script := fmt.Sprintf(`#!/bin/sh
case " $* " in *" %[1]s "*)
	if mkdir '%[2]s/first' 2>/dev/null; then
		echo >'%[2]s/arrived'
		read -r line <'%[2]s/go'
	fi
esac
exec '%[3]s' "$@"
`, option, g.dir, real)
	testkit.Program(t, filepath.Join(g.dir, "qemu-img"), script)
	return g
}

// start starts a program whose qemu-img is the gate's, and waits until one has
// arrived there.
func (g *gate) start(cmd *exec.Cmd) {
	g.t.Helper()
	// It does what no qemu-img may.
	cmd.Env = append(cmd.Env, "PATH="+g.dir+":"+os.Getenv("PATH"), "IMGBACKUP_CONFINE=off")
	if err := cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	if err := g.arrived.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		g.t.Fatal(err)
	}
	if _, err := g.arrived.Read(make([]byte, 1)); err != nil {
		g.t.Fatalf("no qemu-img arrived: %v", err)
	}
}

// open lets the qemu-img go.
func (g *gate) open() {
	g.t.Helper()
	if _, err := g.release.WriteString("\n"); err != nil {
		g.t.Fatal(err)
	}
}

func killGroup(cmd *exec.Cmd) error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }

// A program that is killed while its qemu-img works: qemu-img goes on, nobody
// takes the image before it has ended, and the next run puts all right.
func TestKilledDuringQemuImg(t *testing.T) {
	t.Parallel()
	s := scenes(t, 2)[1]
	for _, option := range []string{"--add", "--remove"} {
		t.Run(option, func(t *testing.T) {
			t.Parallel()
			w := s.copy(t)
			g := newGate(t, option)
			cmd := w.child(nil, w.backup("killed", "--mode", s.mode)...)
			g.start(cmd)
			if err := killGroup(cmd); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); !diedBy(err, syscall.SIGKILL) {
				t.Fatal(err)
			}
			guard, err := qemu.FlockImage(context.Background(), w.image("vda"), 0)
			var busy *qemu.BusyError
			if !errors.As(err, &busy) {
				if err == nil {
					guard.Close()
				}
				t.Errorf("the image can be had while a killed run's qemu-img works on it: %v", err)
			}
			g.open()
			s.backupAgain(w)
		})
	}
}

// Ctrl-C while qemu-img works: it is waited for, and undone. Twice Ctrl-C: it is
// waited for, too, and the next run puts the rest right.
func TestInterruptedDuringQemuImg(t *testing.T) {
	t.Parallel()
	s := scenes(t, 2)[1]
	for _, c := range []struct {
		option  string
		signals int
		code    int
	}{
		{"--add", 1, exitInterrupted},
		{"--remove", 1, exitDone}, // the manifest stands
		{"--add", 2, exitInterrupted},
		{"--remove", 2, exitInterrupted},
	} {
		t.Run(fmt.Sprintf("%s-%d", c.option, c.signals), func(t *testing.T) {
			t.Parallel()
			w := s.copy(t)
			g := newGate(t, c.option)
			cmd := w.child(nil, w.backup("killed", "--mode", s.mode)...)
			said := newNotice()
			cmd.Stderr = said
			g.start(cmd)
			interrupt := func() {
				if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil {
					t.Fatal(err)
				}
			}
			interrupt()
			<-said.taken
			if c.signals > 1 {
				interrupt()
				<-said.stopping
			}
			g.open()
			err := cmd.Wait()
			code := cmd.ProcessState.ExitCode()
			if c.option == "--remove" && c.signals > 1 && code == exitDone {
				code = c.code // it was done before it saw that qemu-img had ended
			}
			if code != c.code {
				t.Fatalf("exit status %d, want %d: %v: %s", code, c.code, err, &said.text)
			}
			if c.code == exitInterrupted && c.signals == 1 {
				w.verifyTidy()
				w.verifyBitmaps(s.checkpoints, false)
			}
			s.backupAgain(w)
		})
	}
}

// notice is what a program says; taken is closed when it has caught a signal,
// and stopping when it has caught a second one.
type notice struct {
	text            bytes.Buffer // not embedded: its ReadFrom would take Write's place
	taken, stopping chan struct{}
	once, twice     sync.Once
}

func newNotice() *notice {
	return &notice{taken: make(chan struct{}), stopping: make(chan struct{})}
}

func (n *notice) Write(p []byte) (int, error) {
	n.text.Write(p)
	if bytes.Contains(n.text.Bytes(), []byte("tidying up")) {
		n.once.Do(func() { close(n.taken) })
	}
	if bytes.Contains(n.text.Bytes(), []byte("stopping")) {
		n.twice.Do(func() { close(n.stopping) })
	}
	return len(p), nil
}
