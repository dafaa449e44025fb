// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// TestDirect: what is read past the cache is what was written; what cannot be read so, is said
// not to have been.
func TestDirect(t *testing.T) {
	t.Parallel()
	content := make([]byte, 1<<20+100)
	var seed [32]byte
	_, _ = rand.NewChaCha8(seed).Read(content)
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	d := OpenDirect(f)
	if d == nil {
		t.Fatal("this file system has no direct reads: nothing of this was tested")
	}
	t.Cleanup(d.Close)
	buf := make([]byte, 1<<20)
	for _, c := range []struct {
		from, length int
		off          int64
		want         bool
	}{
		{0, 1 << 20, 0, true},
		{0, 8192, 512 << 10, true},
		{4096, 4096, 4096, true},
		{0, 4096, 1, false},
		{0, 100, 0, false},
		{1, 4096, 0, false},
		{0, 0, 0, false},
		{0, 8192, 1<<20 - 4096, false}, // beyond the end
	} {
		clear(buf)
		p := buf[c.from : c.from+c.length]
		if got := d.Read(p, c.off); got != c.want || got && !bytes.Equal(p, content[c.off:c.off+int64(c.length)]) {
			t.Errorf("%d bytes at %d: %v", c.length, c.off, got)
		}
	}
	var none *Direct
	none.Close()
	if none.Read(buf, 0) {
		t.Error("nothing was read")
	}
}
