// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// runHere executes a command line and returns its exit status and output.
func runHere(args ...string) (code int, out, stderr string) {
	var o, e bytes.Buffer
	code = run(args, program{in: strings.NewReader(""), out: &o, err: &e})
	return code, o.String(), e.String()
}

// TestManPages: the pages in docs/man are those that the program writes, and
// neither the version of the build nor the environment shows in them.
func TestManPages(t *testing.T) {
	t.Setenv("IMGBACKUP_REPO", "/not/in/a/page")
	t.Setenv("SOURCE_DATE_EPOCH", "0")
	dir := t.TempDir()
	if code, _, stderr := runHere("man", dir); code != exitDone {
		t.Fatalf("exit status %d: %s", code, stderr)
	}
	const docs = "../../docs/man"
	fresh, kept := pages(t, dir), pages(t, docs)
	if !slices.Equal(fresh, kept) {
		t.Errorf("docs/man has %v, the program writes %v (make man updates them)", kept, fresh)
	}
	for _, name := range fresh {
		want, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(want, []byte("/not/in")) || bytes.Contains(want, []byte(version())) {
			t.Errorf("%s shows the environment or the version of the build", name)
		}
		if have, err := os.ReadFile(filepath.Join(docs, name)); err != nil || !bytes.Equal(have, want) {
			t.Errorf("docs/man/%s is not what the program writes (make man updates it): %v", name, err)
		}
	}
}

func pages(t *testing.T, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.1"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s has no man pages: %v", dir, err)
	}
	for i := range paths {
		paths[i] = filepath.Base(paths[i])
	}
	return paths
}

// TestHelp: the help of every command says what it does, gives examples, and
// explains the exit statuses.
func TestHelp(t *testing.T) {
	t.Parallel()
	seen := 0
	var visit func(c *cobra.Command, path []string)
	visit = func(c *cobra.Command, path []string) {
		seen++
		code, out, stderr := runHere(append(path, "--help")...)
		if code != exitDone || stderr != "" {
			t.Errorf("%v --help: exit status %d: %s", path, code, stderr)
		}
		wants := []string{"Exit status", "    2    wrong usage", "Usage:"}
		if !slices.Contains(path, "completion") || len(path) == 1 {
			wants = append(wants, "Examples:", "  imgbackup ")
		}
		for _, want := range wants {
			if !strings.Contains(out, want) {
				t.Errorf("%v --help does not say %q", path, want)
			}
		}
		// It fits two screens; what does not is for the man page.
		if n := strings.Count(out, "\n"); n > 70 {
			t.Errorf("%v --help has %d lines", path, n)
		}
		for _, sub := range c.Commands() {
			if sub.Name() != "help" {
				visit(sub, append(slices.Clone(path), sub.Name()))
			}
		}
	}
	visit(newRoot(program{}), nil)
	if seen < 10 {
		t.Errorf("only %d commands were looked at", seen)
	}
}

// TestManual: what help is too short for is in the man page, with sections of its own.
func TestManual(t *testing.T) {
	t.Parallel()
	for page, wants := range map[string][]string{
		"imgbackup.1":        {".SH EXIT STATUS", ".SH ENVIRONMENT", "IMGBACKUP_REPO"},
		"imgbackup-backup.1": {".SH EXIT STATUS", "cluster_size=SIZE", "Only a program that was killed leaves a stream without end."},
		"imgbackup-check.1":  {".SH EXIT STATUS", "damage       check found"},
		"imgbackup-export.1": {"exportbitmap=NAME"},
	} {
		text, err := os.ReadFile(filepath.Join("../../docs/man", page))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range wants {
			if !bytes.Contains(text, []byte(want)) {
				t.Errorf("%s does not say %q", page, want)
			}
		}
	}
	if _, out, _ := runHere("backup", "--help"); strings.Contains(out, "a stream without end") {
		t.Error("the schema of the events is in the help")
	}
}

// A flag's line is wrapped in a column of its own, and flags that few need are named.
func TestFlagLines(t *testing.T) {
	t.Parallel()
	f := pflag.NewFlagSet("x", pflag.ContinueOnError)
	f.String("disk", "", "a `NAME` and many words that go on and on, so that this line is broken")
	f.BoolP("force", "f", false, "replace")
	f.Int("rare", 7, "for few")
	section(f, whatIsDone, "force")
	section(f, whichDisks, "disk")
	want := `
Disks:
      --disk NAME  a NAME and many words that go on and on,
                   so that this line is broken

What is done:
  -f, --force      replace

Also, explained in the man page: --rare int
`
	if got := flagLines(f, minHelpWidth); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

// TestCompletion: each shell's script is written, and what it asks the program
// is answered.
func TestCompletion(t *testing.T) {
	t.Parallel()
	for _, shell := range []string{"bash", "fish", "powershell", "zsh"} {
		if code, out, _ := runHere("completion", shell); code != exitDone || !strings.Contains(out, "__complete") {
			t.Errorf("completion %s: exit status %d, %d bytes", shell, code, len(out))
		}
	}
	if code, out, _ := runHere("__complete", "resto"); code != exitDone || !strings.Contains(out, "restore\t") {
		t.Errorf("the program does not complete its commands: exit status %d, %s", code, out)
	}
}
