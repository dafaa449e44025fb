// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"errors"
	"io"

	"github.com/imgbackup/imgbackup/bitmapstore"
)

// ErrBitmapInUse is wrapped by the Problem of a bitmap whose in_use flag is set: a writer has the image open right now,
// or it ended without closing it. What such a bitmap says must not be believed.
var ErrBitmapInUse = errors.New("the bitmap is marked in use")

// Bitmap is a persistent dirty bitmap of one qcow2 layer, as its directory entry describes it.
type Bitmap struct {
	Name        string // raw bytes, 1..1023
	Granularity int64  // bytes of the virtual disk per bit; 0 when the entry's value is out of QEMU's range
	Enabled     bool   // recording: flag "auto"
	InUse       bool   // flag "in_use"
	Problem     error  // why the bits cannot be used; nil: they can be read
	StoredBytes int64  // bytes of the table and data clusters that the bitmap occupies in the file

	src bitmapSource
}

// bitmapSource is what the bitmap reader needs to know of a qcow2 image.
type bitmapSource struct {
	file        io.ReaderAt
	path        string // for messages
	fileSize    int64  // bytes
	clusterSize int64  // bytes
	size        int64  // virtual size, bytes
	version     int    // 2 or 3
	autoclear   uint64 // autoclear_features
	extension   []byte // data of header extension 0x23852875, without padding
	hasExt      bool   // the extension is there
}

// readBitmaps reads the bitmap directory. err tells why no bitmap of the image is usable (Layer.BitmapsErr); it never
// means that the image itself is unreadable. No bitmaps and no error: the image has none.
func readBitmaps(s bitmapSource) (bitmaps []*Bitmap, err error) {
	return nil, nil
}

// Runs is the set of dirty bytes, clipped to the layer's virtual size. Each iteration reads the file anew, in bounded
// memory. Damage, and a bitmap with a Problem, end it with an error.
func (b *Bitmap) Runs() bitmapstore.Runs {
	return bitmapstore.Fail(b.Problem)
}

// DirtyBytes is the number of bytes that the bitmap says were written.
func (b *Bitmap) DirtyBytes() (int64, error) { return b.Runs().Bytes() }
