// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/imgbackup/imgbackup/chain"
)

// parseEvents reads a stream, every line of which must be an event.
func parseEvents(t *testing.T, stream []byte) (all []event) {
	t.Helper()
	for line := range bytes.Lines(stream) {
		var e event
		if err := json.Unmarshal(line, &e); err != nil || e.Event == "" || e.Time.IsZero() || line[len(line)-1] != '\n' {
			t.Fatalf("%q is no event: %v", line, err)
		}
		all = append(all, e)
	}
	return all
}

// brief is an event in a few words.
func brief(e event) string {
	s := e.Event
	for _, word := range []string{e.Disk, e.State, e.Phase} {
		if word != "" {
			s += " " + word
		}
	}
	if e.Done != nil {
		s += fmt.Sprintf(" %d/%d", *e.Done, *e.Total)
	}
	if e.Exit != nil {
		s += fmt.Sprintf(" %d", *e.Exit)
	}
	return s
}

// TestEventsOfAHang: a disk that stands still is told of once a second, so that a
// reader sees that, and which disk it is.
func TestEventsOfAHang(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		e := &events{}
		e.start(&out, nil, true, "backup")
		e.expect("web", "vda", "vdb")
		e.setDisk("vda", "reading", 0, 10)
		e.setDisk("vda", "reading", 7, 10)
		time.Sleep(2*eventInterval + eventInterval/2)
		e.setDisk("vda", "reading", 3, 10) // came late
		err := &chain.DiskError{Disk: "vda", Err: errors.New("gone")}
		if err := e.end(exitFailed, err, err.Error()); err != nil {
			t.Fatal(err)
		}
		e.setDisk("vda", "reading", 10, 10)
		if err := e.end(exitDone, nil, ""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * eventInterval)
		var got []string
		for _, v := range parseEvents(t, out.Bytes()) {
			got = append(got, brief(v))
		}
		want := []string{
			"begin", "disk vda waiting", "disk vdb waiting", "disk vda started", "progress vda reading 0/10",
			"progress vda reading 7/10", "progress vda reading 7/10", "disk vda failed", "disk vdb abandoned", "end 1",
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	})
}

// TestEventsWithoutReader: a stream that nobody reads is no reason to fail, and is
// told of.
func TestEventsWithoutReader(t *testing.T) {
	t.Parallel()
	r, w := io.Pipe()
	_ = r.Close() // always succeeds
	e := &events{}
	e.start(w, w, false, "check")
	e.set("reading", 1, 2)
	if err := e.end(exitDone, nil, ""); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("%v", err)
	}
}

// TestFaultyDisk: the disk that an error is about is the one that it names, or the
// only one at work.
func TestFaultyDisk(t *testing.T) {
	t.Parallel()
	e := &events{}
	e.expect("web", "vda", "vdb")
	e.setDisk("vda", "writing", 5, 5)
	e.setDisk("vdb", "writing", 1, 5)
	plain := errors.New("some error")
	for _, c := range []struct {
		exit int
		err  error
		want string
	}{
		{exitFailed, fmt.Errorf("all: %w", &chain.DiskError{Disk: "vda", Err: plain}), "vda"},
		{exitFailed, plain, "vdb"},
		{exitInterrupted, plain, ""},
		{exitDone, nil, ""},
	} {
		if got := e.faulty(c.exit, c.err); got != c.want {
			t.Errorf("exit %d, %v: disk %q, want %q", c.exit, c.err, got, c.want)
		}
	}
}

// TestEventsOfAnInterrupt: a signal is told of when it comes, and what became of
// the work at the end; on a descriptor, beside the words on stderr.
func TestEventsOfAnInterrupt(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	g := newGate(t, "--add")
	stream, err := os.Create(filepath.Join(t.TempDir(), "events"))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	cmd := w.child(nil, w.backup("c1", "--progress-to", "fd:3")...)
	cmd.ExtraFiles = []*os.File{stream}
	said := newNotice()
	cmd.Stderr = said
	g.start(cmd)
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	<-said.taken
	g.open()
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != exitInterrupted {
		t.Fatalf("%v: %s", err, &said.text)
	}
	data, err := os.ReadFile(stream.Name())
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, e := range parseEvents(t, data) {
		if e.Event == "interrupted" && e.Signal != "interrupt" {
			t.Errorf("%+v", e)
		}
		told = append(told, brief(e))
	}
	at := slices.Index(told, "interrupted")
	n := len(told)
	if at < 0 || n < at+4 || !slices.Equal(told[n-3:], []string{"disk vda abandoned", "disk vdb abandoned", "end 130"}) {
		t.Errorf("%q", told)
	}
}
