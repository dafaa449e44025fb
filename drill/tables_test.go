// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
)

// TestTables: QEMU and we read the same in the tables of an image, and where anything is moved
// by one byte, is of another file, or is missing, that is seen.
func TestTables(t *testing.T) {
	t.Parallel()
	const size = 200<<20 + 512
	path := filepath.Join(t.TempDir(), "a.qcow2")
	testkit.Tool(t, "qemu-img", "create", "-q", "-f", "qcow2", path, "209715712")
	testkit.Tool(t, "qemu-io", "-f", "qcow2", "-c", "write 100M 1M", "-c", "write 150M 192k", "-c", "write 30M 64k", "-c", "write -z 150M 64k", path)
	img, err := qcow2.Open(path, qcow2.Qcow2, qcow2.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = img.Close() })
	walk := func(change func(e *qemu.Extent) error) (*tables, error) {
		walked := readTables(t.Context(), img, size)
		defer walked.close()
		err := qemu.Img{}.Map(t.Context(), path, func(e qemu.Extent) error {
			if err := change(&e); err != nil {
				return err
			}
			return walked.agree(e)
		})
		return walked, errors.Join(err, walked.end())
	}
	walked, err := walk(func(*qemu.Extent) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	places := walked.places()
	for i, at := range places {
		if inData := at == 30<<20 || at == 100<<20 || at == 150<<20; inData == (i == 0) {
			t.Errorf("place %d of %v", i, places)
		}
	}
	enough := errors.New("enough")
	changed := false
	for name, change := range map[string]func(e *qemu.Extent) error{
		"moved": func(e *qemu.Extent) error {
			if e.Data && e.Start == 150<<20+64<<10 {
				at := *e.Offset + 1
				e.Offset, changed = &at, true
			}
			return nil
		},
		"nowhere": func(e *qemu.Extent) error { changed, e.Offset = true, nil; return nil },
		"zeros": func(e *qemu.Extent) error {
			changed, e.Data, e.Zero = true, false, true
			return nil
		},
		"data": func(e *qemu.Extent) error {
			changed, e.Data = true, true
			return nil
		},
		"backing":    func(e *qemu.Extent) error { changed, e.Depth = true, 1; return nil },
		"compressed": func(e *qemu.Extent) error { changed, e.Compressed = true, true; return nil },
		"longer":     func(e *qemu.Extent) error { changed, e.Length = true, size+1; return nil },
		"shorter": func(e *qemu.Extent) error {
			if e.Start > 100<<20 {
				changed = true
				return enough
			}
			return nil
		},
	} {
		changed = false
		if _, err := walk(change); !errors.As(err, new(*elsewhereError)) || !changed {
			t.Errorf("%s: %v, changed %v", name, err, changed)
		}
	}
}
