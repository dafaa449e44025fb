// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"fmt"
	"iter"
	"math/rand/v2"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/clustermap"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
)

// tables is what the tables of a restored image say as we read them, walked in step with what
// QEMU finds in them. Nothing is kept but a few places with data.
type tables struct {
	size int64 // of the disk, bytes
	next func() (clustermap.Place, error, bool)
	stop func()

	left    clustermap.Place // of the last place
	reached int64

	data   int64 // bytes that were met
	chosen [comparePlaces - 1]int64
}

// sector is what QEMU cuts the size of a disk to, bytes.
const sector = 512

// readTables begins to read. It must be closed.
func readTables(ctx context.Context, image *qcow2.Image, size int64) *tables {
	t := &tables{size: size}
	t.next, t.stop = iter.Pull2(image.Places(ctx, 0, 0, size))
	return t
}

func (t *tables) close() { t.stop() }

// elsewhereError says that QEMU finds bytes elsewhere than we have read them.
type elsewhereError struct{ what string }

func (e *elsewhereError) Error() string { return "qemu-img map: " + e.what }

// agree takes what QEMU finds next, and returns an [elsewhereError] where that is not what we do.
func (t *tables) agree(e qemu.Extent) error {
	for pos, end := e.Start, e.Start+e.Length; pos < end; {
		if t.left.Length == 0 {
			p, err, ok := t.next()
			if err != nil {
				return err
			}
			if !ok {
				return &elsewhereError{fmt.Sprintf("it goes on to byte %d, and the disk has %d", end, t.size)}
			}
			t.left = p
		}
		n := min(end-pos, t.left.Length)
		if !same(&e, pos, &t.left) {
			return &elsewhereError{fmt.Sprintf("bytes %d to %d are not where they were read", pos, pos+n-1)}
		}
		if e.Data {
			t.choose(pos, n)
		}
		pos += n
		t.left.Offset, t.left.Host, t.left.Length = t.left.Offset+n, t.left.Host+n, t.left.Length-n
		t.reached = pos
	}
	return nil
}

// same reports whether QEMU finds at pos, in e, what p, which begins there, says.
func same(e *qemu.Extent, pos int64, p *clustermap.Place) bool {
	switch {
	case e.Depth != 0 || e.Compressed:
		return false // nothing of a restored image is
	case e.Data:
		return p.Kind == clustermap.Data && e.Offset != nil && *e.Offset+(pos-e.Start) == p.Host
	}
	return e.Zero && (p.Kind == clustermap.Hole || p.Kind == clustermap.Zero)
}

// end returns an [elsewhereError] if QEMU has not seen all of the disk.
func (t *tables) end() error {
	if t.size-t.reached >= sector {
		return &elsewhereError{fmt.Sprintf("it ends at byte %d, and the disk has %d", t.reached, t.size)}
	}
	return nil
}

// choose chooses among all bytes of data, each as likely as another.
func (t *tables) choose(pos, n int64) {
	t.data += n
	for i := range t.chosen {
		if at := rand.Int64N(t.data); at < n {
			t.chosen[i] = pos + at
		}
	}
}

// places are where the disk is looked at: its beginning, and where there is data.
func (t *tables) places() []int64 {
	all := []int64{0}
	for _, at := range t.chosen {
		all = append(all, at-at%archive.GridSize)
	}
	return all
}
