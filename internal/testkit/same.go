// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Differ returns where two files first differ, -1: nowhere. Where one ends and the other goes
// on they differ, too. What is a hole in both is not read: disks of tests are mostly holes.
func Differ(t testing.TB, a, b string) int64 {
	t.Helper()
	x, xs := data(t, a)
	defer func() { _ = x.Close() }() // only for reading
	y, ys := data(t, b)
	defer func() { _ = y.Close() }()
	p, q := make([]byte, 1<<20), make([]byte, 1<<20)
	for pos := int64(0); ; {
		from, end := next(xs, ys, pos)
		if from == end {
			break
		}
		n := min(int64(len(p)), end-from)
		pn, qn := read(t, x, p[:n], from), read(t, y, q[:n], from)
		if !bytes.Equal(p[:pn], q[:qn]) {
			i := 0
			for i < pn && i < qn && p[i] == q[i] {
				i++
			}
			return from + int64(i)
		}
		pos = from + n
	}
	if xn, yn := size(t, x), size(t, y); xn != yn {
		return min(xn, yn)
	}
	return -1
}

// data opens a file and lists where it has data: starts and ends.
func data(t testing.TB, path string) (*os.File, []int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	var at []int64
	for pos := int64(0); ; {
		start, err := f.Seek(pos, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return f, at
		}
		if err == nil {
			pos, err = f.Seek(start, unix.SEEK_HOLE)
		}
		if err != nil {
			t.Fatal(err)
		}
		at = append(at, start, pos)
	}
}

// next is a range from pos on in which one of the files has data; it is empty if none is left.
func next(xs, ys []int64, pos int64) (from, end int64) {
	found := false
	for _, at := range [][]int64{xs, ys} {
		for i := 0; i < len(at); i += 2 {
			if at[i+1] <= pos {
				continue
			}
			if start := max(at[i], pos); !found || start < from {
				found, from, end = true, start, at[i+1]
			}
			break
		}
	}
	return from, end
}

func read(t testing.TB, f *os.File, p []byte, at int64) int {
	t.Helper()
	n, err := f.ReadAt(p, at)
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return n
}

func size(t testing.TB, f *os.File) int64 {
	t.Helper()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}
