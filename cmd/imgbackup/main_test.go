// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// killAt names, in the environment of a test's program, the step of the writing
// order at whose beginning the program kills itself, and optionally, after a
// colon, at which occurrence of it.
const killAt = "IMGBACKUP_TEST_KILL_AT"

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"imgbackup": func() {
			os.Exit(run(os.Args[1:], program{in: os.Stdin, out: os.Stdout, err: os.Stderr, step: killer()}))
		},
	})
}

// killer returns the hook that ends the program as kill -9 would.
func killer() func(string) {
	step, nth, _ := strings.Cut(os.Getenv(killAt), ":")
	if step == "" {
		return nil
	}
	left := len(nth) // one mark for each occurrence that is let pass
	return func(name string) {
		if name != step {
			return
		}
		if left > 0 {
			left--
			return
		}
		if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
			panic(err)
		}
		select {}
	}
}

func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "../../testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}
