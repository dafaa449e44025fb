// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"filippo.io/age"
	"filippo.io/age/plugin"
	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/objstore"
)

// terminal is a program that a person runs, by a pseudo-terminal.
type terminal struct {
	*testing.T
	cmd  *exec.Cmd
	pty  *os.File
	seen bytes.Buffer
}

func atTerminal(t *testing.T, args ...string) *terminal {
	t.Helper()
	pty, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pty.Close() })
	if err := unix.IoctlSetPointerInt(int(pty.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(pty.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	r := &terminal{T: t, cmd: exec.Command("imgbackup", args...), pty: pty}
	r.cmd.Stdin, r.cmd.Stdout, r.cmd.Stderr = tty, tty, tty
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.cmd.Process.Kill() })
	return r
}

// until reads up to a text, which has to come.
func (r *terminal) until(text string) string {
	r.Helper()
	from := r.seen.Len()
	for !bytes.Contains(r.seen.Bytes()[from:], []byte(text)) {
		if !r.read() {
			r.Fatalf("the program ended and did not say %q: %s", text, r.seen.String())
		}
	}
	return r.seen.String()[from:]
}

// read reports whether there may be more.
func (r *terminal) read() bool {
	buf := make([]byte, 4096)
	n, err := r.pty.Read(buf)
	r.seen.Write(buf[:n])
	return err == nil // EIO: nobody has the terminal any more
}

func (r *terminal) types(line string) {
	r.Helper()
	r.keys(line + "\n")
}

func (r *terminal) keys(text string) {
	r.Helper()
	if _, err := r.pty.WriteString(text); err != nil {
		r.Fatal(err)
	}
}

// ends waits for the program, which has to end with a status, and returns all that it said.
func (r *terminal) ends(status int) string {
	r.Helper()
	for r.read() {
	}
	err := r.cmd.Wait()
	if got := r.cmd.ProcessState.ExitCode(); got != status {
		r.Fatalf("exit status %d (%v), want %d: %s", got, err, status, r.seen.String())
	}
	return r.seen.String()
}

// TestAskedAtTerminal: who has no flag for it is asked for a passphrase, which is not shown, and
// whether it is kept elsewhere; one is made up, shown once, and opens the repository. Where
// nothing came of it no passphrase is shown.
func TestAskedAtTerminal(t *testing.T) {
	t.Parallel()
	repo := filepath.Join(t.TempDir(), "repo")
	const ask, kept = "passphrase, of at least 20 characters", "kept in another place than this machine?"
	none := func(said string) {
		t.Helper()
		if _, err := os.Stat(repo); err == nil || strings.Contains(said, "shown once") {
			t.Fatalf("there is a repository, or a passphrase for none was shown: %s", said)
		}
	}
	r := atTerminal(t, "init", "-r", repo, "--encrypt")
	r.until(ask)
	r.types("")
	if said := r.until(kept); !strings.Contains(said, "Without a key everything in this repository is lost") {
		t.Errorf("it says %q", said)
	}
	r.types("n")
	none(r.ends(exitFailed))

	r = atTerminal(t, "init", "-r", repo, "--encrypt")
	r.until(ask)
	r.types("a long enough passphrase")
	r.until("once more")
	r.types("another one, long enough")
	none(r.ends(exitUsage))

	// One Ctrl-C is enough, where a secret is asked for and where not.
	r = atTerminal(t, "init", "-r", repo, "--encrypt")
	r.until(ask)
	r.keys("\x03")
	none(r.ends(exitInterrupted))
	r = atTerminal(t, "init", "-r", repo, "--encrypt")
	r.until(ask)
	r.types("")
	r.until(kept)
	r.keys("\x03")
	none(r.ends(exitInterrupted))

	r = atTerminal(t, "init", "-r", repo, "--encrypt")
	r.until(ask)
	r.types("")
	r.until(kept)
	r.types("y")
	said := r.ends(exitDone)
	made := regexp.MustCompile(`shown once: (\S+)`).FindStringSubmatch(said)
	if made == nil || len(made[1]) < 20 {
		t.Fatalf("no passphrase was shown: %s", said)
	}
	r = atTerminal(t, "list", "-r", repo)
	r.until("passphrase of the repository")
	r.types(made[1])
	if said := r.ends(exitDone); strings.Contains(said, made[1]) {
		t.Errorf("what was typed is shown: %s", said)
	}
	r = atTerminal(t, "list", "-r", repo)
	r.until("passphrase of the repository")
	r.types("this is another passphrase")
	if said := r.ends(exitKey); !strings.Contains(said, "the passphrase does not open this repository") {
		t.Errorf("it says %s", said)
	}
}

// TestInitLate: where the repository can't be made in the end, nothing of it is left, no identity
// file, and no passphrase is shown; where nobody knows whether it was made, what opens it stays.
func TestInitLate(t *testing.T) {
	t.Parallel()
	for _, known := range []bool{true, false} {
		dir := t.TempDir()
		broken := errors.New("the store broke")
		p := program{in: strings.NewReader(""), wrap: func(s objstore.Store) objstore.Store {
			return &configBreaks{Store: s, err: broken, unknown: !known}
		}}
		var out, stderr bytes.Buffer
		p.out, p.err = &out, &stderr
		repo, key := filepath.Join(dir, "repo"), filepath.Join(dir, "me.key")
		if code := run([]string{"init", "-r", repo, "--encrypt", "--out", key}, p); code != exitFailed || !strings.Contains(stderr.String(), broken.Error()) {
			t.Fatalf("exit status %d: %s", code, &stderr)
		}
		_, err := os.Stat(key)
		left := 0
		werr := filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				left++
			}
			return err
		})
		if werr != nil || (err == nil) == known || known != (left == 0) {
			t.Errorf("known %v: identity file: %v, %d files are left, %v", known, err, left, werr)
		}
		if !known {
			continue
		}
		// The next one finds an empty place.
		p.wrap = nil
		if code := run([]string{"init", "-r", repo, "--encrypt", "--out", key}, p); code != exitDone {
			t.Errorf("once more: exit status %d: %s", code, &stderr)
		}
	}
}

// configBreaks is a store that does not take a configuration, or does not tell.
type configBreaks struct {
	objstore.Store
	err     error
	unknown bool
	put     bool
}

func (c *configBreaks) Unwrap() objstore.Store { return c.Store }

func (c *configBreaks) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	if key != objstore.Marker {
		return c.Store.Put(ctx, key, body, o)
	}
	c.put = true
	if c.unknown {
		return nil
	}
	return c.err
}

func (c *configBreaks) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if key == objstore.Marker && c.put && c.unknown {
		return nil, c.err
	}
	return c.Store.Get(ctx, key, offset, length)
}

// ourPlugin is a plugin of age, whose keys are age's own under another name.
func ourPlugin() {
	p, err := plugin.New("imgbackuptest")
	if err != nil {
		panic(err)
	}
	p.HandleRecipient(func(data []byte) (age.Recipient, error) { return age.ParseX25519Recipient(string(data)) })
	p.HandleIdentity(func(data []byte) (age.Identity, error) { return age.ParseX25519Identity(string(data)) })
	os.Exit(p.Main())
}

// TestPlugin: a plugin's recipients and identities open a repository, for all that is done to keys.
func TestPlugin(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(dir, "plugin.key")
	if err := os.WriteFile(key, []byte(plugin.EncodeIdentity("imgbackuptest", []byte(id.String()))+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	imgbackup := func(status int, args ...string) string {
		t.Helper()
		cmd := exec.Command("imgbackup", append([]string{"-r", filepath.Join(dir, "repo"), "--identity", key}, args...)...)
		out, err := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != status {
			t.Fatalf("imgbackup %v: exit status %d, %v: %s", args, got, err, out)
		}
		return string(out)
	}
	imgbackup(exitDone, "init", "--encrypt", "--recipient", plugin.EncodeRecipient("imgbackuptest", []byte(id.Recipient().String())))
	imgbackup(exitDone, "key", "add", "other", "--role", "manager", "--out", filepath.Join(dir, "other.key"))
	imgbackup(exitDone, "key", "rotate")
	imgbackup(exitDone, "list")
	if err := os.WriteFile(key, []byte(plugin.EncodeIdentity("nosuchplugin", []byte("x"))+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if said := imgbackup(exitKey, "list"); !strings.Contains(said, "nosuchplugin") {
		t.Errorf("it says %s", said)
	}
}
