// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

// TestJournal: a job whose stderr leads to a real journald leaves entries with fields there, and
// none twice. It needs to be root.
func TestJournal(t *testing.T) {
	t.Parallel()
	if !testkit.OwnMachine(t, "/run") {
		return
	}
	const socket = "/run/systemd/journal/"
	if err := os.MkdirAll("/run/log/journal", 0o755); err != nil {
		t.Fatal(err)
	}
	journald := exec.Command("/lib/systemd/systemd-journald")
	if err := journald.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = journald.Process.Kill(), journald.Wait() }()
	for range 1000 {
		if _, err := os.Stat(socket + "stdout"); err == nil {
			break
		}
		wait(10 * time.Millisecond)
	}
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", filepath.Join(dir, "web.qcow2"), "1M")
	config := write("c.yaml", fmt.Sprintf(`
state: %[1]s/state
repositories: {site: {place: %[1]s/repo}}
domains:
  web: {disks: ["vda=%[1]s/web.qcow2,format=qcow2"]}
  lost: {disks: ["vda=%[1]s/lost.qcow2,format=qcow2"]}
jobs:
  nightly: {repository: site, domains: ["*.none", web, lost], hooks: {before: [sh, -c, 'echo a word from $IMGBACKUP_DOMAIN >&2']}}
`, dir))
	command := func(args ...string) *exec.Cmd {
		cmd := exec.Command("/proc/self/exe", append(args, "--config", config)...)
		cmd.Args[0] = "imgbackup"
		return cmd
	}
	if out, err := command("init", "-r", "site").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}

	cmd := command("run", "nightly")
	stream, err := net.Dial("unix", socket+"stdout")
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	fmt.Fprintf(stream, "imgbackup\n\n6\n1\n0\n0\n0\n") // as systemd begins a service's
	f, err := stream.(*net.UnixConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	cmd.Stderr, cmd.Env = f, append(os.Environ(), fmt.Sprintf("JOURNAL_STREAM=%d:%d", st.Dev, st.Ino))
	if _, err := cmd.Output(); cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != exitFailed {
		t.Fatal(err, cmd.ProcessState)
	}
	testkit.Tool(t, "journalctl", "--sync")
	entries := journalEntries(t)
	count := func(fields ...string) (n int) {
		for _, e := range entries {
			all := true
			for i := 0; i < len(fields); i += 2 {
				all = all && strings.Contains(e[fields[i]], fields[i+1])
			}
			if all {
				n++
			}
		}
		return n
	}
	for _, want := range [][]string{
		{"MESSAGE", "before web: a word from web", "IMGBACKUP_JOB", "nightly", "IMGBACKUP_DOMAIN", "web", "IMGBACKUP_STEP", "before", "PRIORITY", "6"},
		{"MESSAGE", "backup web: ends: status 0", "IMGBACKUP_STATUS", "0", "IMGBACKUP_STEP", "backup", "SYSLOG_IDENTIFIER", "imgbackup", "_TRANSPORT", "journal"},
		{"MESSAGE", "backup lost: ends: status 1", "IMGBACKUP_STATUS", "1", "IMGBACKUP_DOMAIN", "lost", "PRIORITY", "4"},
		{"MESSAGE", "backup lost: imgbackup: disk vda: ", "IMGBACKUP_DOMAIN", "lost"},
		{"MESSAGE", "run: ends: status 1", "PRIORITY", "3", "IMGBACKUP_STATUS", "1"},
		{"MESSAGE", "note: no domain matches *.none", "PRIORITY", "6"},
		{"MESSAGE", "not everything went well", "PRIORITY", "3"},
	} {
		if n := count(want...); n != 1 {
			t.Errorf("%d entries have %q", n, want)
		}
	}
	runs := make(map[string]bool)
	for _, e := range entries {
		if e["IMGBACKUP_JOB"] != "" {
			runs[e["IMGBACKUP_RUN"]] = true
		}
	}
	if len(runs) != 1 || runs[""] {
		t.Errorf("entries of a job's run are of %v", runs)
	}
	if n := count("_TRANSPORT", "stdout"); n != 0 {
		t.Errorf("%d lines went there by stderr", n)
	}

	// Where stderr leads elsewhere, it is as always.
	cmd = command("run", "nightly", "--quiet")
	var stderr bytes.Buffer
	cmd.Stderr, cmd.Env = &stderr, append(os.Environ(), fmt.Sprintf("JOURNAL_STREAM=%d:%d", st.Dev, st.Ino))
	if _, err := cmd.Output(); err == nil || !strings.Contains(stderr.String(), "imgbackup: not everything went well\n") {
		t.Errorf("%v: %s", err, &stderr)
	}
	testkit.Tool(t, "journalctl", "--sync")
	if before := len(entries); len(journalEntries(t)) != before {
		t.Error("it wrote into the journal, where stderr is not")
	}
}

// journalEntries are the journal's entries of this program.
func journalEntries(t *testing.T) (entries []map[string]string) {
	t.Helper()
	out := testkit.Tool(t, "journalctl", "--directory", "/run/log/journal", "--output", "json", "--no-pager", "SYSLOG_IDENTIFIER=imgbackup")
	for line := range strings.Lines(out) {
		var e map[string]string
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		entries = append(entries, e)
	}
	return entries
}
