// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"os"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// FileID tells one state of one file from another; compare it with ==. Times
// are nanoseconds since 1970.
//
// Of a block device, Dev is the device's own number, Inode is 0 and so are the
// times: those of a device node say nothing about what is on the device.
type FileID struct {
	Dev, Inode       uint64
	Size             int64 // bytes; of a block device its capacity
	MtimeNs, CtimeNs int64
}

// Stat returns the present state of the open file.
func (f *File) Stat() (FileID, error) {
	st, err := sys.Stat(f.f)
	if err != nil {
		return FileID{}, err
	}
	return f.fileID(&st, f.f)
}

// Sync makes durable what others wrote to the file.
func (f *File) Sync() error { return f.f.Sync() }

// Device reports whether the file is a block device.
func (f *File) Device() bool { return f.device }

// Opened returns the state that the file had when it was opened, before
// anything was read out of it.
func (f *File) Opened() FileID { return f.opened }

// PathStat returns the present state of whatever stands at the file's path.
func (f *File) PathStat() (FileID, error) {
	var st unix.Stat_t
	if err := sys.Restart(func() error { return unix.Stat(f.path, &st) }); err != nil {
		return FileID{}, &os.PathError{Op: "stat", Path: f.path, Err: err}
	}
	return f.fileID(&st, f.f)
}

func (f *File) fileID(st *unix.Stat_t, open *os.File) (FileID, error) {
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return FileID{
			Dev: uint64(st.Dev), Inode: st.Ino, Size: st.Size,
			MtimeNs: st.Mtim.Nano(), CtimeNs: st.Ctim.Nano(),
		}, nil
	}
	id := FileID{Dev: uint64(st.Rdev)}
	if f.device {
		size, err := open.Seek(0, unix.SEEK_END)
		if err != nil {
			return FileID{}, fmt.Errorf("%s: find the size of the device: %w", f.path, err)
		}
		id.Size = size
	}
	return id, nil
}

// stateOf is the present state of an open file, which may be a block device.
func stateOf(open *os.File) (FileID, error) {
	st, err := sys.Stat(open)
	if err != nil {
		return FileID{}, err
	}
	f := File{path: open.Name(), device: st.Mode&unix.S_IFMT == unix.S_IFBLK}
	return f.fileID(&st, open)
}

// ID identifies the file for as long as it is open, whatever its name.
func (f *File) ID() (sys.ID, error) {
	st, err := sys.Stat(f.f)
	return sys.IdentityOf(&st), err
}

// ID identifies the layer's own file for as long as it is open.
func (l *Layer) ID() (sys.ID, error) { return l.file.ID() }

// Device reports whether the layer lies on a block device.
func (l *Layer) Device() bool { return l.file.device }

// Stat returns the present state of the layer's own file, through the open
// descriptor.
func (l *Layer) Stat() (FileID, error) { return l.file.Stat() }

// PathStat returns the present state of whatever stands at the layer's path.
func (l *Layer) PathStat() (FileID, error) { return l.file.PathStat() }

// Files are the files that the layer consists of: the image, and its external
// data file if it has one.
func (l *Layer) Files() []*File {
	if s, ok := l.foreign.(Sourced); ok {
		return s.Sources()
	}
	if l.data != l.file {
		return []*File{l.file, l.data}
	}
	return []*File{l.file}
}

// HeaderDigest is the SHA-256 of what the header says about the disk's content:
// version, cluster size, virtual size, encryption, compression type, the
// incompatible features (but not the dirty and corrupt bits), and backing file,
// backing format and data file as recorded. Where tables lie, bitmaps, internal
// snapshots, refcounts and the other feature bits are not part of it, since
// they change without the guest's data. It is all zeros for a raw layer.
//
// The digest is kept in archives: its composition must not change.
func (l *Layer) HeaderDigest() [32]byte {
	h := l.Header
	if h == nil {
		return [32]byte{}
	}
	d := sha256.New()
	digestString(d, "qcow2 header digest 1")
	for _, v := range []uint64{
		uint64(h.Version), uint64(h.ClusterBits), uint64(h.RawSize), uint64(h.CryptMethod), uint64(h.Compression),
		h.Incompatible &^ (IncompatDirty | IncompatCorrupt),
	} {
		digestUint(d, v)
	}
	for _, s := range []string{h.BackingFile, h.BackingFormat, h.DataFile} {
		digestString(d, s)
	}
	return [32]byte(d.Sum(nil))
}

func digestUint(d hash.Hash, v uint64) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], v)
	d.Write(b[:])
}

func digestString(d hash.Hash, s string) {
	digestUint(d, uint64(len(s)))
	d.Write([]byte(s))
}
