// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"
)

// server is an imgbackup that serves clients in the background.
type server struct {
	cmd    *exec.Cmd
	out    string      // what it has said until it began to serve
	rest   chan string // the lines that followed
	stderr bytes.Buffer
}

// start returns when the server has said that it serves.
func (s *server) start(cmd *exec.Cmd) error {
	s.cmd, s.rest = cmd, make(chan string, 1000)
	s.stderr.Reset()
	cmd.Stderr = &s.stderr
	r, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return err
	}
	in := bufio.NewReader(r)
	s.out = ""
	for serves := false; !serves; {
		line, err := in.ReadString('\n')
		s.out += line
		serves = strings.HasPrefix(line, "serving ") || strings.HasPrefix(line, "mounted ") || line == "}\n"
		if err != nil {
			_ = cmd.Wait()
			s.cmd = nil
			return fmt.Errorf("it does not serve: %v\n%s%s", cmd.ProcessState, s.out, s.stderr.String())
		}
	}
	go func() {
		defer close(s.rest)
		for {
			line, err := in.ReadString('\n')
			s.rest <- line
			if err != nil {
				return
			}
		}
	}()
	return nil
}

// says waits until the server has said a text since it began to serve.
func (s *server) says(text string) error {
	for line := range s.rest {
		s.out += line
		if strings.Contains(line, text) {
			return nil
		}
	}
	return fmt.Errorf("it has ended, and never said %q\n%s", text, s.out)
}

// end sends a signal, if there is one, and returns the exit status; -1: it died by
// a signal. All that it has said is in out.
func (s *server) end(sig syscall.Signal) (int, error) {
	if sig != 0 {
		if err := s.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return 0, err
		}
	}
	for line := range s.rest {
		s.out += line
	}
	err := s.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	code := s.cmd.ProcessState.ExitCode()
	s.cmd = nil
	return code, nil
}

type serverKey struct{}

// server start ARG… starts an imgbackup that serves clients, and waits until it
// does. What it prints is in server.out, and what it says on stderr in server.err
// once it has ended: server stop STATUS lets it end by SIGTERM, server wait STATUS
// by itself, and its exit status has to be that; server kill -1 kills it; server says TEXT waits for a line with it.
// There is at most one at a time.
func scriptServer(ts *testscript.TestScript, neg bool, args []string) {
	const usage = "server start ARG… | server stop STATUS | server wait STATUS | server kill -1 | server says TEXT"
	demand(ts, !neg && len(args) >= 2, usage)
	s := ts.Value(serverKey{}).(*server)
	if args[0] == "start" {
		cmd := exec.Command("imgbackup", args[1:]...)
		cmd.Dir = ts.MkAbs(".")
		cmd.Env = os.Environ()
		for _, name := range []string{"IMGBACKUP_REPO", "IMGBACKUP_HOST_ID", identityVar, definitions} {
			if val := ts.Getenv(name); val != "" {
				cmd.Env = append(cmd.Env, name+"="+val)
			}
		}
		ts.Check(s.start(cmd))
		ts.Defer(func() {
			if s.cmd == cmd {
				_, _ = s.end(syscall.SIGKILL)
			}
		})
		ts.Check(os.WriteFile(ts.MkAbs("server.out"), []byte(s.out), 0o600))
		return
	}
	if args[0] == "says" {
		demand(ts, len(args) == 2 && s.cmd != nil, usage)
		ts.Check(s.says(args[1]))
		return
	}
	sig := map[string]syscall.Signal{"stop": syscall.SIGTERM, "kill": syscall.SIGKILL, "wait": 0}
	_, ok := sig[args[0]]
	want, err := strconv.Atoi(args[1])
	demand(ts, ok && err == nil && len(args) == 2 && s.cmd != nil, usage)
	code, err := s.end(sig[args[0]])
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs("server.out"), []byte(s.out), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs("server.err"), s.stderr.Bytes(), 0o600))
	if code != want {
		ts.Fatalf("the server's exit status is %d, want %d\n%s%s", code, want, s.out, s.stderr.String())
	}
}
