// SPDX-License-Identifier: Apache-2.0

package local_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/objstore/local"
	"golang.org/x/sys/unix"
)

// hangingBody says "half" when it has given its first half, and then hangs.
type hangingBody struct{}

func (hangingBody) Size() int64 { return 8 << 20 }

func (hangingBody) ReadAt(p []byte, off int64) (int, error) {
	if off >= 4<<20 {
		fmt.Println("half")
		for { // until it is killed: a program whose goroutines all wait would end itself
			_, _ = unix.Poll(nil, -1)
		}
	}
	return len(p), nil
}

// TestLocalKilledWriter kills a process in the middle of storing an object.
func TestLocalKilledWriter(t *testing.T) {
	t.Parallel()
	if dir := os.Getenv("OBJSTORE_KILLED"); dir != "" {
		s, err := local.Open(dir, local.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Fatal(s.Put(t.Context(), "d/object", hangingBody{}, objstore.PutOptions{Mode: objstore.Replace}))
	}
	dir := t.TempDir()
	write(t, openLocal(t, dir), "d/object", "old")
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), "OBJSTORE_KILLED="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "half\n" {
		t.Errorf("the writer said %q, %v", line, err)
	}
	// As long as it lives, nobody takes its file away.
	s := openLocal(t, dir)
	write(t, s, "other", "x")
	if names := temps(t, dir); len(names) != 1 {
		t.Errorf("in tmp while the writer lives: %q", names)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if got, err := objstore.ReadAll(t.Context(), s, "d/object", 10); err != nil || string(got) != "old" {
		t.Errorf("%q, %v", got, err)
	}
	if keys, err := listAll(t.Context(), s, ""); err != nil || strings.Join(keys, " ") != "d/object other" {
		t.Errorf("%q, %v", keys, err)
	}
	write(t, openLocal(t, dir), "other", "y")
	if names := temps(t, dir); len(names) != 0 {
		t.Errorf("in tmp after the next writer began: %q", names)
	}
}
