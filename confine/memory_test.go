// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// kept, if it is in the environment of the test binary, says whether it keeps its memory to
// itself. It then starts a program apart, says so, and waits.
const kept = "CONFINE_TEST_KEPT"

func waitKept(how string) error {
	if how == "yes" {
		KeepMemory()
	}
	p, used, err := StartApart(func(Apart) *exec.Cmd {
		cmd := exec.Command("/bin/sleep", "600")
		cmd.Env = []string{}
		return cmd
	}, WaysApart(nil))
	if err != nil {
		return err
	}
	defer p.Kill()
	fmt.Println("ready", p.Cmd.Process.Pid, used.Namespaces)
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// unlikely is a user that nobody is.
const unlikely = 0x6ffffff0

// asUser lets a command run as that user, if we may.
func asUser(cmd *exec.Cmd) *exec.Cmd {
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: unlikely, Gid: unlikely}}
	}
	return cmd
}

// TestKeepMemory: another process of the same user reads the memory, the environment and the
// descriptors of one that keeps them to itself as little as a stranger's; those of one that does
// not, it reads. What such a process starts, also in a user namespace, is as apart as ever.
func TestKeepMemory(t *testing.T) {
	t.Parallel()
	apart := make(map[string]string)
	for _, how := range []string{"no", "yes"} {
		path, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		binary, err := os.Open(path) // whose folder is closed to others
		if err != nil {
			t.Fatal(err)
		}
		cmd := asUser(exec.Command("/proc/self/fd/3"))
		cmd.ExtraFiles = []*os.File{binary}
		cmd.Env = []string{kept + "=" + how, "SECRET=marker-in-the-environment"}
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err = errors.Join(err, binary.Close()); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		m := regexp.MustCompile(`^ready (\d+) (\d+)\n$`).FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("%q, %v", line, err)
		}
		apart[how] = m[2]
		at := fmt.Sprintf("/proc/%d/", cmd.Process.Pid)
		for script, reads := range map[string]bool{
			"grep -q marker-in-the-environment " + at + "environ": how == "no",
			": <" + at + "mem":                                       how == "no",
			"grep -q stack " + at + "maps":                           how == "no",
			"ls " + at + "fd/0":                                      how == "no",
			"grep -q . " + at + "stat":                               true, // by which others see that it lives
			"kill -0 " + fmt.Sprint(cmd.Process.Pid):                 true,
			"grep -Eq '^Max core file size +1 +1 ' " + at + "limits": how == "yes",
		} {
			if said, err := asUser(exec.Command("sh", "-c", script)).CombinedOutput(); (err == nil) != reads {
				t.Errorf("kept %s: %s: %v: %s", how, script, err, said)
			}
		}
		if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
			t.Errorf("kept %s: %v", how, err)
		}
	}
	if apart["yes"] != apart["no"] {
		t.Errorf("programs are apart by the namespaces %s, and %s without: %s", apart["yes"], apart["no"], strings.Join(os.Environ(), " "))
	}
}
