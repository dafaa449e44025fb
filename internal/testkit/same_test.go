// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// TestDiffer compares sparse files of random content with what their bytes say.
func TestDiffer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rnd := rand.New(rand.NewPCG(1, 7))
	make1 := func(name string, size int, writes map[int]byte) (string, []byte) {
		path := filepath.Join(dir, name)
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(int64(size)); err != nil {
			t.Fatal(err)
		}
		data := make([]byte, size)
		for at, b := range writes {
			if at < size {
				data[at] = b
				if _, err := f.WriteAt([]byte{b}, int64(at)); err != nil {
					t.Fatal(err)
				}
			}
		}
		return path, data
	}
	same := 0
	for range 100 {
		writes, others := make(map[int]byte), make(map[int]byte)
		for range rnd.IntN(4) {
			at, b := rnd.IntN(64)*4096+rnd.IntN(2), byte(rnd.IntN(2))
			writes[at] = b
			if rnd.IntN(8) > 0 {
				others[at] = b
			}
		}
		if rnd.IntN(3) == 0 {
			others[rnd.IntN(64)*4096] = byte(rnd.IntN(2))
		}
		size := 4096 + rnd.IntN(64)*4096
		osize := size
		if rnd.IntN(4) == 0 {
			osize -= rnd.IntN(4096)
		}
		a, x := make1("a", size, writes)
		b, y := make1("b", osize, others)
		want := int64(-1)
		if !bytes.Equal(x, y) {
			for want = 0; want < int64(len(x)) && want < int64(len(y)) && x[want] == y[want]; want++ { //nolint:revive // it counts
			}
		} else {
			same++
		}
		if got := Differ(t, a, b); got != want {
			t.Fatalf("%d, want %d: %v and %v, %d and %d bytes", got, want, writes, others, size, osize)
		}
	}
	if same < 20 || same > 80 {
		t.Errorf("%d of 100 are the same", same)
	}
}
