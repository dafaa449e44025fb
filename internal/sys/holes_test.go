// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestNextData(t *testing.T) {
	t.Parallel()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	const size = 8 << 20
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	// What is written is found, wherever the holes begin.
	if _, err := f.WriteAt(make([]byte, 1<<20), 4<<20); err != nil {
		t.Fatal(err)
	}
	for off := int64(0); off < size; {
		from, to := NextData(f, off, size)
		if from < off || to < from || to > size {
			t.Fatalf("from %d: [%d, %d)", off, from, to)
		}
		if off < 5<<20 && from > 4<<20 && from > off || to <= 4<<20 && from == to {
			t.Fatalf("from %d: [%d, %d) leaves data out", off, from, to)
		}
		off = max(to, off+1)
	}
}

func TestNextDataAnswers(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		data, hole     int64
		dataErr, noEnd error
		from, to       int64
	}{
		"data":             {20, 50, nil, nil, 20, 50},
		"up to the end":    {20, 200, nil, nil, 20, 100},
		"behind the end":   {100, 200, nil, nil, 100, 100},
		"nothing":          {0, 0, unix.ENXIO, nil, 100, 100},
		"cannot tell":      {0, 0, unix.EINVAL, nil, 10, 100},
		"fails":            {0, 0, unix.EIO, nil, 10, 100},
		"goes back":        {5, 50, nil, nil, 10, 100},
		"an end that lies": {20, 20, nil, nil, 20, 100},
		"no end":           {20, 0, nil, unix.EIO, 20, 100},
	} {
		from, to := nextData(10, 100, func(_ int64, whence int) (int64, error) {
			if whence == unix.SEEK_DATA {
				return c.data, c.dataErr
			}
			return c.hole, c.noEnd
		})
		if from != c.from || to != c.to {
			t.Errorf("%s: [%d, %d), want [%d, %d)", what, from, to, c.from, c.to)
		}
	}
}
