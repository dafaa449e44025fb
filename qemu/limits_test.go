// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/confine"
)

// TestLimits: what only reads an image has a limit on its memory; what writes into one never has, since the
// image's bitmaps would be lost with it.
func TestLimits(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	image, out := filepath.Join(dir, "image"), filepath.Join(dir, "out")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// The limit comes when it has begun; if it is to come, it is waited for, else given time to.
	waits := fmt.Sprintf(`while test $(ulimit -v) = unlimited; do :; done; ulimit -v >'%s'`, out)
	looks := fmt.Sprintf(`for i in 1 2 3 4 5 6 7 8 9 10; do /bin/true; done; ulimit -v >'%s'`, out)
	access := confine.Access{Make: []string{dir}}
	for what, c := range map[string]struct {
		program string
		run     func(q Img) error
		want    string
	}{
		"bitmap --add":    {looks, func(q Img) error { return q.BitmapAdd(t.Context(), image, "n", 512) }, "unlimited"},
		"bitmap --remove": {looks, func(q Img) error { return q.BitmapRemove(t.Context(), image, "n") }, "unlimited"},
		"a writer that was given a limit": {looks, func(q Img) error {
			q.Access.Memory = 1 << 30
			return q.BitmapAdd(t.Context(), image, "n", 512)
		}, "unlimited"},
		"check": {waits, func(q Img) error { _, err := q.CheckRefcounts(t.Context(), image); return ignore(err) }, fmt.Sprint(ReadMemory(0) >> 10)},
		"map":   {waits, func(q Img) error { return ignore(q.Map(t.Context(), image, func(Extent) error { return nil })) }, fmt.Sprint(ReadMemory(0) >> 10)},
		"what its caller limits": {waits, func(q Img) error {
			q.Access.Memory = 3 << 30
			_, err := q.Run(t.Context(), dir, "compare")
			return err
		}, fmt.Sprint(3 << 20)},
		"qemu-nbd": {waits, func(q Img) error {
			n, err := StartNBD(q.Program, confine.Access{Make: []string{dir}, Memory: ReadMemory(5 << 40)})
			if err != nil {
				return err
			}
			return n.Wait()
		}, fmt.Sprint((2<<30 + 5*40<<20) >> 10)},
	} {
		q := script(t, c.program)
		q.Access = access
		if err := c.run(q); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		got, err := os.ReadFile(out)
		if err != nil || strings.TrimSpace(string(got)) != c.want {
			t.Errorf("%s: a limit of %s, and not %s (%v)", what, got, c.want, err)
		}
		_ = os.Remove(out)
	}
}

// ignore lets an error pass that says that a program has said nothing.
func ignore(err error) error {
	if err != nil && strings.Contains(err.Error(), "cannot be understood") {
		return nil
	}
	return err
}
