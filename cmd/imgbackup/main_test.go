// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/objstore"
)

// What a test's program does besides its work, in its environment.
const (
	// killAt names the step of the writing order at whose beginning the program
	// kills itself, and optionally, after a colon, one mark for each occurrence
	// of it that is let pass.
	killAt = "IMGBACKUP_TEST_KILL_AT"
	// killAtOp is the number, from 1 on, of the operation on the repository at
	// which the program kills itself: within it when it stores, else before. After a
	// colon: what the keys begin with of the objects whose storing alone is counted.
	killAtOp = "IMGBACKUP_TEST_KILL_AT_OP"
	// failAtOp is the number of the operation on the repository that fails, and
	// after a colon how: see failingStore.
	failAtOp = "IMGBACKUP_TEST_FAIL_AT_OP"
	// tellSteps is the number of a descriptor that each step's name is written
	// to, a line each.
	tellSteps = "IMGBACKUP_TEST_TELL_STEPS"
	// holdAt is the number of a descriptor, and after a colon the step at whose
	// beginning the program waits until there is something to read from it.
	holdAt = "IMGBACKUP_TEST_HOLD_AT"
	// patience is how long a store is given to come back.
	patience = "IMGBACKUP_TEST_PATIENCE"
	// definitions is the folder that stands for libvirt's.
	definitions = "IMGBACKUP_TEST_DEFINITIONS"
	// managersRoot is the folder that stands for / where other managers keep their VMs.
	managersRoot = "IMGBACKUP_TEST_MANAGERS_ROOT"
	// delay is the mean time before what failed is tried again.
	delay = "IMGBACKUP_TEST_DELAY"
	// indexEvery is how many bytes of packs go into an index.
	indexEvery = "IMGBACKUP_TEST_INDEX_EVERY"
	// raceVar is how the race detector is told what to do.
	raceVar = "GORACE"
	// tryOpen is a file that the program tries to read when its command has ended; it tells
	// stderr whether it could.
	tryOpen = "IMGBACKUP_TEST_TRY_OPEN"
	// tellPeak is a file for the most memory that the program had, bytes.
	tellPeak = "IMGBACKUP_TEST_TELL_PEAK"
	// encryptTo is the recipient of all repositories that are made without a word of encryption.
	encryptTo = "IMGBACKUP_TEST_ENCRYPT_TO"
	// hostTo is the recipient of a host that each of them has, and hostIdentity the file with its key, by which
	// backups are made.
	hostTo       = "IMGBACKUP_TEST_HOST_TO"
	hostIdentity = "IMGBACKUP_TEST_HOST_IDENTITY"
)

func TestMain(m *testing.M) {
	// What tests keep is not to lie in anybody's home. Those that want it name a folder.
	if os.Getenv(cacheVar) == "" {
		if err := os.Setenv(cacheVar, "off"); err != nil {
			panic(err)
		}
	}
	testscript.Main(m, map[string]func(){
		"age-plugin-imgbackuptest": ourPlugin,
		"nolandlock":               noLandlock,
		"imgbackup": func() {
			confine.KeepMemory()
			p := program{in: os.Stdin, out: os.Stdout, err: os.Stderr, memory: limitMemory(), alone: true, journal: newJournal(), step: stepHook(), definitions: os.Getenv(definitions), managersRoot: os.Getenv(managersRoot), workFactor: 8}
			if d, err := time.ParseDuration(os.Getenv(patience)); err == nil {
				p.retry.Patience = d
			}
			if d, err := time.ParseDuration(os.Getenv(delay)); err == nil {
				p.retry.FirstDelay = d
			}
			if n, err := strconv.ParseInt(os.Getenv(indexEvery), 10, 64); err == nil {
				p.indexEvery = n
			}
			op, prefix, _ := strings.Cut(os.Getenv(killAtOp), ":")
			if n, err := strconv.Atoi(op); err == nil {
				p.wrap = func(s objstore.Store) objstore.Store { return &deadlyStore{Store: s, at: int64(n), prefix: prefix} }
			}
			if n, how, ok := strings.Cut(os.Getenv(failAtOp), ":"); ok {
				at, err := strconv.Atoi(n)
				if err != nil {
					panic(err)
				}
				p.wrap = (&failingStore{at: int64(at), how: failure(how)}).around
			}
			if os.Getenv("TMPDIR") == "" { // which restricted commands may use; tests' own folders are in /tmp
				if err := os.Setenv("TMPDIR", "/var/tmp"); err != nil {
					panic(err)
				}
			}
			backUpByHost(os.Args[1:])
			code := run(encryptInit(os.Args[1:]), p)
			if code == exitDone {
				code = addHost(os.Args[1:])
			}
			if path := os.Getenv(tryOpen); path != "" {
				_, err := os.ReadFile(path)
				fmt.Fprintf(os.Stderr, "tried to open: %v\n", err)
			}
			writePeak()
			os.Exit(code)
		},
	})
}

// killSelf ends the program as kill -9 would.
func killSelf() {
	if err := unix.Kill(os.Getpid(), unix.SIGKILL); err != nil {
		panic(err)
	}
	select {}
}

// stepHook returns the hook that the environment asks for.
func stepHook() func(string) {
	step, nth, _ := strings.Cut(os.Getenv(killAt), ":")
	left := len(nth)
	var tell *os.File
	if fd, err := strconv.Atoi(os.Getenv(tellSteps)); err == nil {
		unix.CloseOnExec(fd)
		tell = os.NewFile(uintptr(fd), "steps")
	}
	held, hold := heldStep()
	if step == "" && tell == nil && hold == nil {
		return nil
	}
	var mu sync.Mutex // several domains may be at work
	return func(name string) {
		mu.Lock()
		defer mu.Unlock()
		if tell != nil {
			// Nobody may be reading any more.
			_, _ = io.WriteString(tell, name+"\n")
		}
		if hold != nil && name == held {
			// Its end is as good: then the test has failed.
			_, _ = hold.Read(make([]byte, 1))
		}
		if name != step {
			return
		}
		if left > 0 {
			left--
			return
		}
		killSelf()
	}
}

// heldStep returns what holdAt asks for.
func heldStep() (step string, hold *os.File) {
	fd, step, ok := strings.Cut(os.Getenv(holdAt), ":")
	n, err := strconv.Atoi(fd)
	if !ok || err != nil {
		return "", nil
	}
	unix.CloseOnExec(n)
	return step, os.NewFile(uintptr(n), "hold")
}
