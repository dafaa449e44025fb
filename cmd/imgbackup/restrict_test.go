// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/archive"
)

// TestServersAreRestricted: from the moment that clients can connect, serve and export open no
// more files than they have named: all of their threads are bound. Package confine tests what
// that means. A repository that is swapped for a hostile one meanwhile leads nowhere.
func TestServersAreRestricted(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.commit("c1")
	for name, args := range map[string][]string{
		"serve":  {"serve", domain, "c1"},
		"export": {"export", domain, "--disk", "vda=" + w.image("vda") + ",format=qcow2"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &server{}
			cmd := w.child(nil, append(args, "--socket", filepath.Join(w.dir, name+".sock"), "--pid-file", filepath.Join(w.dir, name+".pid"))...)
			if err := s.start(cmd); err != nil {
				t.Fatal(err)
			}
			tasks, err := filepath.Glob("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/task/*/status")
			if err != nil || len(tasks) == 0 {
				t.Fatal(tasks, err)
			}
			for _, task := range tasks {
				status, err := os.ReadFile(task)
				if os.IsNotExist(err) {
					continue // that thread has ended
				}
				if !regexp.MustCompile(`NoNewPrivs:\s1`).Match(status) {
					t.Errorf("%s: %v\n%s", task, err, status)
				}
			}
			limits, err := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/limits")
			if !regexp.MustCompile(`(?m)^Max core file size +1 +1 `).Match(limits) {
				t.Errorf("a core could be dumped: %v\n%s", err, limits)
			}
			if code, err := s.end(unix.SIGTERM); code != exitDone || err != nil {
				t.Errorf("exit status %d, %v: %s", code, err, s.stderr.String())
			}
			for _, left := range []string{".sock", ".pid"} {
				if _, err := os.Stat(filepath.Join(w.dir, name+left)); !os.IsNotExist(err) {
					t.Errorf("%s%s is left", name, left)
				}
			}
		})
	}
	o := w.outcome(w.child(nil, "list", "--verbose"))
	if o.code != exitDone || strings.Contains(o.err, "no Landlock") {
		t.Errorf("%+v", o) // the tests need one
	}
}

// ownProcess is what docs/security.md says of commands: which restrict themselves.
func ownProcess(t *testing.T) map[string]bool {
	t.Helper()
	text, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "\n| command | restricts itself | to what, or why not |\n")
	section, _, more := strings.Cut(section, "\n\n")
	if !ok || !more {
		t.Fatal("docs/security.md has no table of commands")
	}
	all := make(map[string]bool)
	for _, line := range strings.Split(section, "\n")[1:] {
		cells := strings.Split(line, "|")
		if len(cells) != 5 || len(strings.TrimSpace(cells[3])) < 10 {
			t.Fatalf("%q", line)
		}
		for _, m := range regexp.MustCompile("`([a-z -]+)`").FindAllStringSubmatch(cells[1], -1) {
			if _, twice := all[m[1]]; twice {
				t.Errorf("%s is there twice", m[1])
			}
			switch strings.TrimSpace(cells[2]) {
			case "yes":
				all[m[1]] = true
			case "no":
				all[m[1]] = false
			default:
				t.Errorf("%q is neither yes nor no", line)
			}
		}
	}
	return all
}

// TestRestrictedCommands: each command is in the table of docs/security.md, and restricts itself just where that
// says so: at its end, it can't read a file beside the repository any more. (serve, mount and export have
// TestServersAreRestricted.)
func TestRestrictedCommands(t *testing.T) {
	t.Parallel()
	documented := ownProcess(t)
	known := leaves(newRoot(program{out: io.Discard, err: io.Discard}), "")
	for _, name := range known {
		if _, ok := documented[name]; !ok {
			t.Errorf("docs/security.md does not say whether %s restricts itself", name)
		}
	}
	for name := range documented {
		if !slices.Contains(known, name) {
			t.Errorf("docs/security.md: there is no command %s", name)
		}
	}
	w := newWorld(t, 1)
	for i, name := range []string{"c1", "c2"} {
		w.guest("vda", fmt.Sprintf("write -P %d 1M 64k", i))
		w.look("vda")
		w.commit(name)
	}
	canary := filepath.Join(t.TempDir(), "canary")
	if err := os.WriteFile(canary, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	other, image := filepath.Join(w.dir, "other", "repo"), "vda="+w.image("vda")+",format=qcow2"
	w.must("init", "-r", other)
	tried := make(map[string]bool)
	for _, c := range []struct {
		name string
		args []string
	}{
		{"leases", nil}, {"inspect", []string{w.image("vda")}}, // which don't, so that the trial is one that tells
		{"list", nil}, {"show", []string{domain, "c1"}}, {"drills", nil}, {"check", []string{"--read-data"}}, {"lock", nil},
		{"report", []string{"--html", filepath.Join(w.dir, "page.html")}}, {"changes", []string{domain, "c1", "c2"}},
		{"tag", []string{domain, "c1", "--add", "x"}}, {"copy", []string{"--to", other}},
		{"repair", []string{"--from", other, "--image", image}},
		{"import", []string{"imported", "--disk", image}},
		{"restore", []string{domain, "--output", filepath.Join(w.dir, "restored")}},
		{"restore", []string{domain, "c1", "--to", "vda=" + filepath.Join(w.dir, "vda.vmdk"), "--format", "vmdk", "--verify"}},
		{"restore", []string{domain, "c1", "--in-place", "--force", "--continue"}},
		{"backup", w.backup("c3")[1:]}, {"forget", []string{domain, "c1"}}, {"forget", []string{domain, "c2", "--prune"}}, {"prune", []string{"--max-unused", "0"}},
	} {
		tried[c.name] = true
		o := w.outcome(w.child([]string{tryOpen + "=" + canary, "TMPDIR=/var/tmp"}, append([]string{c.name}, c.args...)...))
		if want := c.name != "lock"; (o.code == exitDone) != want { // which this repository is not made for
			t.Errorf("%s %v: exit status %d: %s", c.name, c.args, o.code, o.err)
		}
		_, said, _ := strings.Cut(o.err, "tried to open: ")
		if refused := strings.Contains(said, "permission denied"); refused != documented[c.name] || said == "" {
			t.Errorf("%s %v: docs/security.md: restricted: %v; here: %s", c.name, c.args, documented[c.name], o.err)
		}
	}
	for name, restricted := range documented {
		if restricted && !tried[name] && name != "serve" && name != "export" && name != "mount" {
			t.Errorf("%s was not tried", name)
		}
	}
}

// TestCacheOfAFolder: of a large repository in a folder a backup keeps what it has of chunks, also where the
// folder for that is not there yet: it is made before the process restricts itself. Of a small one nothing is.
func TestCacheOfAFolder(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	cache := filepath.Join(w.dir, "some", "cache")
	backup := func(name string) outcome {
		return w.outcome(w.child([]string{cacheVar + "=" + cache}, "backup", domain, "--disk", "vda="+w.image("vda")+",format=qcow2", "--checkpoint", name))
	}
	o := backup("c1")
	if _, err := os.Stat(cache); o.code != exitDone || !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("of a small one: %+v: %v", o, err)
	}
	large := make([]byte, 1<<20) // which is no index, and would be large
	path := filepath.Join(w.repo(), filepath.FromSlash(archive.IndexKey("nobody", archive.Sum(large))))
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, large, 0o600)); err != nil {
		t.Fatal(err)
	}
	o = backup("c2")
	lists, err := filepath.Glob(filepath.Join(cache, "*", "chunks", "*"))
	if o.code != exitDone || err != nil || len(lists) == 0 || strings.Contains(o.err, "brought up to date") {
		t.Errorf("%+v: %v, %v", o, lists, err)
	}
	if info, err := os.Stat(cache); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v: %v", info, err)
	}
}

// leaves are the commands that do something.
func leaves(cmd *cobra.Command, path string) (all []string) {
	for _, c := range cmd.Commands() {
		name := strings.TrimSpace(path + " " + c.Name())
		if c.Hidden || name == "help" || name == "completion" {
			continue
		}
		if !c.HasSubCommands() || strings.Contains(c.Use, " ") { // which is no mere group
			all = append(all, name)
		}
		all = append(all, leaves(c, name)...)
	}
	return all
}
