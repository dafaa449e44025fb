// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/testkit"
)

// run runs a program, confined, and returns what it says.
func run(t *testing.T, a Access, dir, name string, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := exec.Command(path, args...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = []string{}, dir, &out, &out
	p, err := Start(cmd, a)
	if err != nil {
		t.Fatal(err)
	}
	err = p.Wait()
	return out.String(), err
}

// hostile makes an image that would have whoever reads it open something else.
func hostile(t *testing.T, dir string, args ...string) string {
	t.Helper()
	path := filepath.Join(dir, "hostile.qcow2")
	testkit.ToolIn(t, dir, "qemu-img", append(append([]string{"create", "-q", "-f", "qcow2"}, args...), path, "1M")...)
	return path
}

// What an image's header names is refused by the kernel, though qemu-img would open it.
func TestHostileImages(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"backing file": {[]string{"-u", "-b", "/etc/passwd", "-F", "raw"}, "'/etc/passwd': Permission denied"},
		"json": {[]string{"-u", "-F", "raw", "-b", `json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}`},
			"/etc/passwd': Permission denied"},
		"nbd":  {[]string{"-u", "-F", "raw", "-b", "nbd://127.0.0.1:10809/x"}, "Operation not permitted"},
		"unix": {[]string{"-u", "-F", "raw", "-b", "nbd+unix:///x?socket=/run/nothing"}, "Operation not permitted"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := hostile(t, dir, c.args...)
			out, err := run(t, Access{Read: []string{path}}, dir, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, "/dev/null")
			if err == nil || !strings.Contains(out, c.want) {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

// So is a data file.
func TestHostileDataFile(t *testing.T) {
	t.Parallel()
	dir, other := t.TempDir(), t.TempDir()
	path := hostile(t, dir, "-o", "data_file="+filepath.Join(other, "data"))
	read := []string{"qemu-io", "-r", "-f", "qcow2", "-c", "read 0 512", path}
	if out, err := exec.Command(read[0], read[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("not even unconfined: %v: %s", err, out)
	}
	out, err := run(t, Access{Read: []string{path}}, dir, read[0], read[1:]...)
	if err == nil || !strings.Contains(out, "data': Permission denied") {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := run(t, Access{Read: []string{path, filepath.Join(other, "data")}}, dir, read[0], read[1:]...); err != nil {
		t.Errorf("named by the caller: %v: %s", err, out)
	}
}

// Whatever runs in place of a program, it gets no further.
func TestRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	mine, made, other := filepath.Join(dir, "mine"), filepath.Join(dir, "made"), filepath.Join(t.TempDir(), "other")
	for _, path := range []string{mine, other} {
		if err := os.WriteFile(path, []byte("text"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(made, 0o700); err != nil {
		t.Fatal(err)
	}
	a := Access{Write: []string{mine}, Make: []string{made}}
	for _, c := range []struct {
		script string
		ok     bool
	}{
		{"read x <$0 || test $x = text", true},
		{"echo new >$0", true},
		{"echo new >$1/new && rm $1/new", true},
		{"read x <$2", false},
		{"echo new >>$2", false},
		{"ls /etc", false},
		{"rm $0", false},
		{"echo new >$0.new", false},
		{"mkdir $1/folder", false},
		{"ln -s $0 $1/link", false},
		{"cp /bin/true $1/true && chmod +x $1/true", false},
		{"chmod 777 $0", false},
		{"chown 1:1 $0", false},
		{"touch -d 2000-01-01 $0", false},
		{"mount -t tmpfs none $1", false},
		{"unshare -U true", false},
		{"kill -0 $PPID", !ThisKernel().Signals},
	} {
		out, err := run(t, a, dir, "sh", "-c", c.script, mine, made, other)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v: %s", c.script, err, out)
		}
	}
}

// It has no environment, no descriptors of ours, no new privileges and no network.
func TestSurroundings(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fd, err := unix.Open(dir, unix.O_RDONLY, 0) // to be inherited
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if out, err := run(t, Access{}, dir, "env"); err != nil || out != "" {
		t.Errorf("%v: %s", err, out)
	}
	proc := Access{Read: []string{"/proc"}}
	if out, err := run(t, proc, dir, "ls", "-l", "/proc/self/fd"); err != nil || !strings.Contains(out, " 2 -> ") || strings.Contains(out, dir) {
		t.Errorf("%v: %s", err, out)
	}
	out, err := run(t, proc, dir, "grep", "-E", "^(NoNewPrivs|Seccomp):", "/proc/self/status")
	if err != nil || strings.Join(strings.Fields(out), " ") != "NoNewPrivs: 1 Seccomp: 2" {
		t.Errorf("%v: %s", err, out)
	}
}

// A thread that was bound is never used for anything else.
func TestOthersAreFree(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 64)
	for range cap(failed) {
		go func() {
			cmd := exec.Command("/bin/true")
			p, err := Start(cmd, Access{})
			if err == nil {
				err = p.Wait()
			}
			if err != nil {
				failed <- err
				return
			}
			_, err = os.ReadFile(path)
			if err == nil {
				err = os.Chmod(path, 0o600)
			}
			failed <- err
		}()
	}
	for range cap(failed) {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
}

// The limit on memory comes.
func TestMemory(t *testing.T) {
	t.Parallel()
	const limit = 300 << 20
	out, err := run(t, Access{Memory: limit}, "/", "sh", "-c", "while test $(ulimit -v) = unlimited; do :; done; ulimit -v")
	if err != nil || strings.TrimSpace(out) != fmt.Sprint(limit>>10) {
		t.Errorf("%v: %s", err, out)
	}
}
