// SPDX-License-Identifier: Apache-2.0

package guestfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

// cases are what a guestfish answers that is pretended.
const cases = `
  inspect-os) echo /dev/sda2 ;;
  inspect-get-type) echo linux ;;
  inspect-get-distro) echo unknown ;;
  inspect-get-major-version) echo 12 ;;
  inspect-get-mountpoints) printf '/boot/efi: /dev/sda1\n/: /dev/sda2\n/boot: /dev/sda3\n' ;;
  inspect-*) echo 'libguestfs: error: not known' >&2 ;;
  mount-ro) [ "$2" != '"/dev/sda3"' ] || echo 'libguestfs: error: mount: it is broken' >&2 ;;
  ping-daemon) %s ;;
  x) %s ;;`

// pretend starts a session with a guestfish that runs these commands.
func pretend(t *testing.T, ping, x string) *Session {
	t.Helper()
	dir := t.TempDir()
	socket := filepath.Join(dir, "socket")
	if err := os.WriteFile(socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	program := testkit.Guestfish(t, fmt.Sprintf(cases, ping, x))
	s, err := Start(t.Context(), Options{Disks: []Disk{{Name: "vda", Socket: socket}}, TempDir: dir, Program: program, Emulate: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if left := testkit.Names(t, dir); len(left) != 1 {
			t.Errorf("left behind: %q", left)
		}
		verifyEnded(t, s)
		var st unix.Stat_t
		if err := unix.Stat(socket, &st); err != nil || int(st.Uid) != os.Geteuid() {
			t.Errorf("the socket is the user's %d now, %v", st.Uid, err)
		}
	})
	return s
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	const failed = `echo '*stdin*:3: libguestfs: error: x: it is broken' >&2`
	for name, c := range map[string]struct {
		ping, x string
		out     string
		said    string // of a CallError
		ended   bool
	}{
		"no newline":   {x: `printf abc`, out: "abc"},
		"a false mark": {x: `printf 'mark-\nmark-0123\n'`, out: "mark-\nmark-0123\n"},
		"a warning":    {x: `echo 'guestfish: warning: it is Saturday' >&2; echo abc`, out: "abc\n"},
		"its warning":  {x: `echo 'libguestfs: error: x: warning: it is broken' >&2`, said: "x: warning: it is broken"},
		"fails":        {x: failed, said: "x: it is broken"},
		"dies":         {x: failed, ping: failed, ended: true},
		"is gone":      {x: `exit 1`, ended: true},
		"gone at ping": {x: failed, ping: `exit 1`, ended: true},
		"escapes":      {x: `printf '\033[31mred\n' >&2`, said: "?[31mred"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.ping == "" {
				c.ping = ":"
			}
			s := pretend(t, c.ping, c.x)
			if s.Version != "1.50.2" {
				t.Errorf("version %q", s.Version)
			}
			out, err := s.call(t.Context(), "x", "argument")
			var call *CallError
			switch {
			case c.ended != errors.Is(err, ErrEnded), c.said != "" && (!errors.As(err, &call) || call.Said != c.said):
				t.Errorf("%v", err)
			case c.said == "" && !c.ended && (err != nil || string(out) != c.out):
				t.Errorf("%q, %v; want %q", out, err, c.out)
			}
		})
	}
}

// Of an appliance that does not start, the causes are told, and not what libguestfs always advises.
func TestComplaint(t *testing.T) {
	t.Parallel()
	said := "qemu: could not access KVM kernel module\n" +
		"*stdin*:3: libguestfs: error: appliance closed the connection unexpectedly.\nThis usually means the libguestfs appliance crashed.\n" +
		"Do:\n  export LIBGUESTFS_DEBUG=1 LIBGUESTFS_TRACE=1\nand run the command again.  For further information, read:\n" +
		"  http://libguestfs.org/guestfs-faq.1.html#debugging-libguestfs\n" +
		"You can also run 'libguestfs-test-tool' and post the *complete* output\n" +
		"into a bug report or message to the libguestfs mailing list.\n" +
		"*stdin*:3: libguestfs: error: /usr/bin/qemu-system-x86_64 killed by signal 6 (Aborted).\n" +
		"To see full error messages you may need to enable debugging.\nDo:\n  export LIBGUESTFS_DEBUG=1 LIBGUESTFS_TRACE=1\n"
	want := "qemu: could not access KVM kernel module; appliance closed the connection unexpectedly; " +
		"/usr/bin/qemu-system-x86_64 killed by signal 6 (Aborted)"
	if got := complaint(said); got != want {
		t.Errorf("it says %q\nwant    %q", got, want)
	}
}

// What is not known of an operating system is left empty; what it mounts is mounted from
// the root on, and what can't be is told.
func TestSystems(t *testing.T) {
	t.Parallel()
	s := pretend(t, ":", ":")
	all, err := s.Systems(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const want = "[{/dev/sda2 linux   12 0   [{/ /dev/sda2} {/boot /dev/sda3} {/boot/efi /dev/sda1}]}]"
	if got := fmt.Sprint(all); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	missing, err := s.MountSystem(t.Context(), all[0])
	if err != nil || len(missing) != 1 || !strings.Contains(missing[0], "/dev/sda3 at /boot: mount: it is broken") {
		t.Errorf("%q, %v", missing, err)
	}
}

// What talks without end, or not at all, is ended.
func TestEndless(t *testing.T) {
	t.Parallel()
	s := pretend(t, ":", "yes")
	if _, err := s.call(t.Context(), "x"); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("an endless answer: %v", err)
	}
	s = pretend(t, ":", "sleep 1000")
	ctx, cancel := context.WithCancel(t.Context())
	go cancel()
	if _, err := s.call(ctx, "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("an answer that does not come: %v", err)
	}
}

func TestNotInstalled(t *testing.T) {
	t.Parallel()
	_, err := Start(t.Context(), Options{Disks: []Disk{{Name: "vda"}}, Program: filepath.Join(t.TempDir(), "guestfish")})
	if !errors.Is(err, ErrNotInstalled) || !strings.Contains(err.Error(), "libguestfs-tools") {
		t.Errorf("%v", err)
	}
}

// Whatever a name is, it is one word for guestfish, and that name.
func FuzzQuote(f *testing.F) {
	for _, s := range []string{"", "/etc/hostname", `a"b`, "a\nb", "!ls", `\`, "ü", "| cat", "\x01\xff", "~/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		q := quote(s)
		if strings.ContainsAny(q[1:len(q)-1], "\"\n!|~") || q[0] != '"' || q[len(q)-1] != '"' {
			t.Fatalf("%q", q)
		}
		var back strings.Builder
		for rest := q[1 : len(q)-1]; rest != ""; {
			if !strings.HasPrefix(rest, `\x`) {
				back.WriteByte(rest[0])
				rest = rest[1:]
				continue
			}
			var c byte
			if _, err := fmt.Sscanf(rest[2:4], "%02x", &c); err != nil {
				t.Fatal(err)
			}
			back.WriteByte(c)
			rest = rest[4:]
		}
		if back.String() != s {
			t.Fatalf("%q comes back as %q", s, back.String())
		}
	})
}
