// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/rogpeppe/go-internal/testscript"
)

// Scripts run in plain repositories, and in encrypted ones: there init makes each repository an
// encrypted one where a script says nothing of it, and IMGBACKUP_IDENTITY opens them all. A line
// that is true of one kind only begins with [encrypted] or [!encrypted].

// plainScripts are those that are run in plain repositories only, and why. In a soak they are
// run in encrypted ones, too, and must fail there.
func plainScripts() map[string]string {
	return map[string]string{
		"copykeys": "it says of each repository which keys it has, or none",
		"key":      "it shows what is said where no key is given",
	}
}

// hostScripts are those that are run, in encrypted repositories, with backups by a host, which can't read what it
// stores; all else is done by an admin. In a soak all of them are run by an admin alone, too.
func hostScripts() []string {
	return []string{"backup", "prune", "domain", "firmware", "forget", "names", "rawdata", "sidebyside", "trust", "unusual"}
}

// secretScripts are run in encrypted repositories each time; in a soak all are.
func secretScripts() []string { return []string{"backup", "copy", "prune", "repair"} }

// TestEncryptedScripts runs the scripts of TestScripts in encrypted repositories.
func TestEncryptedScripts(t *testing.T) {
	t.Parallel()
	all, some := scriptNames(t), secretScripts()
	not := slices.Sorted(maps.Keys(plainScripts()))
	for _, name := range slices.Concat(not, some) {
		if !slices.Contains(all, name) || slices.Contains(not, name) && slices.Contains(some, name) {
			t.Errorf("there is no script %s, or it is in both lists", name)
		}
	}
	if os.Getenv("IMGBACKUP_SOAK") == "" {
		testscript.Run(t, scriptParams(t, keyed, some, hostScripts()...))
		return
	}
	for _, name := range not {
		t.Run("plain-only-"+name, func(t *testing.T) {
			t.Parallel()
			if f := (&failing{T: t}); !f.fails(scriptParams(t, keyed, []string{name})) {
				t.Errorf("%s passes in encrypted repositories: it does not belong into plainScripts", name)
			}
		})
	}
	t.Run("by-host", func(t *testing.T) {
		t.Parallel()
		testscript.Run(t, scriptParams(t, keyed, hostScripts(), hostScripts()...))
	})
	testscript.Run(t, scriptParams(t, keyed, slices.DeleteFunc(all, func(name string) bool { return slices.Contains(not, name) })))
}

// scriptNames are those of all scripts.
func scriptNames(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(scriptDir, "*.txtar"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for i, f := range files {
		files[i] = strings.TrimSuffix(filepath.Base(f), ".txtar")
	}
	return files
}

// secretRepositories has the environment of scripts make encrypted repositories, all of them for one identity.
func secretRepositories(t *testing.T, setenv func(name, value string)) error {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return err
	}
	file := filepath.Join(t.TempDir(), "me.key")
	setenv(encryptTo, id.Recipient().String())
	setenv(identityVar, file)
	return os.WriteFile(file, []byte(id.String()+"\n"), 0o600)
}

// secretHost has them have a host's key, by which backups are made.
func secretHost(t *testing.T, setenv func(name, value string)) error {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return err
	}
	file := filepath.Join(t.TempDir(), "host.key")
	setenv(hostTo, id.Recipient().String())
	setenv(hostIdentity, file)
	return os.WriteFile(file, []byte(id.String()+"\n"), 0o600)
}

// madeBy reports whether a command line is one of a command, whatever the repository is.
func madeBy(args []string, command string) bool {
	i := slices.Index(args, command)
	return i == 0 || i == 2 && (args[0] == "-r" || args[0] == "--repo")
}

// backUpByHost has a backup that names no key be made with a host's.
func backUpByHost(args []string) {
	if file := os.Getenv(hostIdentity); file != "" && madeBy(args, "backup") && os.Getenv(identityVar) != "" {
		if err := os.Setenv(identityVar, file); err != nil {
			panic(err)
		}
	}
}

// addHost adds the host to a repository that an init has made.
func addHost(args []string) int {
	to := os.Getenv(hostTo)
	if to == "" || !madeBy(args, "init") || slices.Contains(args, "--encrypt") || slices.Contains(args, "--help") {
		return exitDone
	}
	add := []string{"key", "add", "h", "--role", "host", "--recipient", to}
	for i, arg := range args[:len(args)-1] {
		if arg == "-r" || arg == "--repo" {
			add = append(add, arg, args[i+1])
		}
	}
	return run(add, program{in: strings.NewReader(""), out: io.Discard, err: os.Stderr, workFactor: 8})
}

// encryptInit makes a command line that makes a repository one that makes an encrypted one, where
// the environment of a test asks for that.
func encryptInit(args []string) []string {
	to := os.Getenv(encryptTo)
	if to == "" || !madeBy(args, "init") || slices.Contains(args, "--encrypt") {
		return args
	}
	return append(slices.Clone(args), "--encrypt", "--recipient", "me="+to)
}

// failing is a test of testscript that should fail.
type failing struct {
	*testing.T
	failed bool
}

// fails reports whether the scripts fail.
func (f *failing) fails(p testscript.Params) bool {
	f.alone(func() { testscript.RunT(f, p) })
	return f.failed
}

// alone runs a part of the test to its end, which may be in the middle.
func (f *failing) alone(part func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		part()
	}()
	<-done
}

func (f *failing) Run(_ string, part func(testscript.T)) { f.alone(func() { part(f) }) }
func (f *failing) Parallel()                             {}
func (f *failing) Verbose() bool                         { return false }
func (f *failing) Log(...any)                            {}
func (f *failing) Skip(...any)                           { runtime.Goexit() }
func (f *failing) Fatal(...any)                          { f.FailNow() }

func (f *failing) FailNow() {
	f.failed = true
	runtime.Goexit()
}
