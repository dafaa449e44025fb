// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qcow2"
)

// Image is a disk's image with its backing chain, as it is now.
type Image struct {
	Layers  []Layer // the active one first; each one's backing file is the next
	Content Content
	RawData RawData
}

// Size is the disk's virtual size, bytes.
func (i *Image) Size() int64 { return i.Layers[0].Size }

// Layer is one image of the chain.
type Layer struct {
	Record     chain.Layer   // its path, format and identity, when it was opened
	Size       int64         // virtual, bytes
	Header     *qcow2.Header // nil: not a qcow2 image, or one that is not read natively
	ReadBy     string        // the other program that reads it; empty: none
	Device     bool          // it is a block device
	DataFile   bool          // its guest data lies in a file of its own
	Born       time.Time     // when its file was made; zero: not known
	Snapshots  []chain.Snapshot
	Bitmaps    []Bitmap
	BitmapsErr error // why none of them can be used
}

// Bitmap returns the bitmap of that name, or nil.
func (l *Layer) Bitmap(name string) *Bitmap {
	for i := range l.Bitmaps {
		if l.Bitmaps[i].Name == name {
			return &l.Bitmaps[i]
		}
	}
	return nil
}

// Bitmap is a dirty bitmap of a layer.
type Bitmap struct {
	Name        string
	Granularity int64 // bytes per bit
	Enabled     bool  // it records
	InUse       bool  // whoever wrote to the image did not close it
	Problem     error // why it cannot be read
	Dirty       bitmapstore.Runs
}

// Reader reads a disk.
type Reader interface {
	// ReadAt fills p, which lies within the disk.
	ReadAt(ctx context.Context, p []byte, off int64) error
}

// Content is what a disk holds. Its sets are read anew for each iteration.
type Content interface {
	Reader
	// Data is where the chain holds data.
	Data(ctx context.Context) bitmapstore.Runs
	// Empty is where the chain reads as zeros without holding any data. Holes of files come
	// and go: that it is empty there now proves no write.
	Empty(ctx context.Context) bitmapstore.Runs
	// Unmapped is where the chain has no data by its images' tables, which only writes change.
	Unmapped(ctx context.Context) bitmapstore.Runs
	// Allocated is what a layer itself holds, as data or as zeros.
	Allocated(ctx context.Context, layer int) bitmapstore.Runs
}

// Look describes an open image. What it returns must not outlive it.
func Look(c *qcow2.Image) *Image {
	image := &Image{Content: c, RawData: rawDataOf(c.Layers[0])}
	for _, l := range c.Layers {
		layer := Layer{
			Record: LayerRecord(l), Size: l.Size, Header: l.Header, ReadBy: l.ReadBy(),
			Device: l.Device(), DataFile: l.DataFile != "", Born: born(l.Path),
			Snapshots: SnapshotRecords(l.Snapshots), BitmapsErr: l.BitmapsErr,
		}
		for _, b := range l.Bitmaps {
			layer.Bitmaps = append(layer.Bitmaps, Bitmap{
				Name: b.Name, Granularity: b.Granularity, Enabled: b.Enabled, InUse: b.InUse,
				Problem: b.Problem, Dirty: b.Runs(),
			})
		}
		image.Layers = append(image.Layers, layer)
	}
	return image
}

// LayerRecord describes a layer for a manifest, as it was when it was opened.
func LayerRecord(l *qcow2.Layer) chain.Layer {
	id := l.Files()[0].Opened()
	return chain.Layer{
		Path: l.Path, Format: string(l.Format), Device: id.Dev, Inode: id.Inode,
		FileSize: id.Size, Mtime: id.MtimeNs, Ctime: id.CtimeNs,
		HeaderDigest: archive.Digest(l.HeaderDigest()),
	}
}

// SnapshotRecords describes internal snapshots for a manifest.
func SnapshotRecords(now []qcow2.Snapshot) []chain.Snapshot {
	var rec []chain.Snapshot
	for _, sn := range now {
		rec = append(rec, chain.Snapshot{ID: sn.ID, Name: sn.Name, CreatedNS: sn.Created.UnixNano()})
	}
	return rec
}

// born is when the file system says that a file was made, or the zero time.
func born(path string) time.Time {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_BTIME, &st)
	if err != nil || st.Mask&unix.STATX_BTIME == 0 {
		return time.Time{}
	}
	return time.Unix(st.Btime.Sec, int64(st.Btime.Nsec))
}
