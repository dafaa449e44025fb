// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/confine"
)

// It says what it has said, and is gone when Kill returns.
func TestNBD(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(dir, "begun"), 0o600); err != nil {
		t.Fatal(err)
	}
	program := script(t, fmt.Sprintf("echo first >&2; echo second >&2; head -c 100000 /dev/zero >&2; echo >'%s/begun'; exec sleep 1000", dir)).Program
	n, err := StartNBD(program, confine.Access{Make: []string{dir}}, "an argument")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile(filepath.Join(dir, "begun")); err != nil {
		t.Fatal(err)
	}
	select {
	case <-n.Ended:
		t.Error("it has ended")
	default:
	}
	n.Kill()
	n.Kill() // once more is no harm
	<-n.Ended
	if n.Cmd.ProcessState == nil {
		t.Error("it has no state")
	}
	cause := errors.New("cause")
	got := n.Explain(cause)
	if !errors.Is(got, cause) || !strings.Contains(got.Error(), "first; second") || len(got.Error()) > 2<<10+100 {
		t.Errorf("%.300q", got)
	}
	if _, err := StartNBD("qemu-nbd-that-is-nowhere", confine.Access{}); err == nil || !strings.Contains(err.Error(), "qemu-utils") {
		t.Errorf("not installed: %v", err)
	}
}
