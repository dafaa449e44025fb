// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sort"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/qemu"
)

// File is an open file of a chain: an image, or an external data file.
type File struct {
	path    string
	f       *os.File
	size    int64 // bytes, when it was opened
	opened  FileID
	clone   FileID // of the clone that is read in its place, when it was made; zero: none is
	device  bool   // block device
	caching atomic.Int32
	filled  atomic.Pointer[[]fileRange] // all that is no hole; nil: not known
	direct  *sys.Direct                 // nil: guest data is read through the page cache, or not kept there
}

// fileRange is a range of a file, bytes.
type fileRange struct{ start, end int64 }

// maxFilled bounds the ranges that are remembered of a file, 16 bytes each.
const maxFilled = 128 << 10

// How guest data is kept out of the page cache.
const (
	cachingDontCache int32 = iota // read with RWF_DONTCACHE
	cachingDrop                   // fadvise after each read: the file was not cached when we came
	cachingKeep                   // leave the cache alone
)

// openFile opens a regular file or block device for reading. It never blocks,
// as opening a FIFO would, and does not open what is neither. With claim, a
// block device is opened exclusively: it cannot be mounted, or claimed by
// another such opener, as long as it is open; otherwise that it is not claimed
// is only looked at. A claimed device gives an [*qemu.InUseError].
func openFile(path string, claim bool) (*File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if err := checkFileType(path, info); err != nil {
		return nil, err
	}
	device := info.Mode()&fs.ModeDevice != 0
	f, err := openRead(path, device && claim)
	if err != nil {
		return nil, err
	}
	if device && !claim {
		probe, err := openRead(path, true)
		if err != nil {
			closeRead(f)
			return nil, err
		}
		closeRead(probe)
	}
	file := &File{path: path, f: f, device: device}
	if err := file.describe(info); err != nil {
		closeRead(f)
		return nil, err
	}
	return file, nil
}

// closeRead closes a descriptor that was only read from: nothing can be lost.
func closeRead(f *os.File) { _ = f.Close() }

func openRead(path string, exclusive bool) (*os.File, error) {
	flags := unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY
	if exclusive {
		flags |= unix.O_EXCL
	}
	var fd int
	err := sys.Restart(func() (err error) {
		fd, err = unix.Open(path, flags, 0)
		return err
	})
	switch {
	case err == unix.EBUSY && exclusive:
		return nil, &qemu.InUseError{Path: path, Why: "the block device is mounted or claimed by another program"}
	case err != nil:
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	// Regular files and block devices know no waiting; the flag was for
	// whatever else might have stood there.
	if err := unix.SetNonblock(fd, false); err != nil {
		_ = unix.Close(fd)
		return nil, &fs.PathError{Op: "fcntl", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// describe checks that what was opened is what was looked at before, and finds
// its size.
func (f *File) describe(before fs.FileInfo) error {
	info, err := f.f.Stat()
	if err != nil {
		return err
	}
	if !os.SameFile(before, info) {
		return fmt.Errorf("%s: replaced by another file while it was opened; try again", f.path)
	}
	if f.size = info.Size(); f.device {
		if f.size, err = f.f.Seek(0, io.SeekEnd); err != nil {
			return fmt.Errorf("%s: find the size of the device: %w", f.path, err)
		}
	}
	f.opened, err = f.Stat()
	return err
}

// checkFileType refuses what is neither a regular file nor a block device.
func checkFileType(path string, info fs.FileInfo) error {
	what := ""
	switch m := info.Mode(); {
	case m.IsRegular():
		return nil
	case m.IsDir():
		what = "a directory"
	case m&fs.ModeNamedPipe != 0:
		what = "a named pipe"
	case m&fs.ModeSocket != 0:
		what = "a socket"
	case m&fs.ModeCharDevice != 0:
		what = "a character device"
	case m&fs.ModeDevice != 0:
		return nil
	default:
		what = "a special file"
	}
	return &PolicyError{Path: path, What: "is " + what + "; images are regular files or block devices"}
}

// Path is absolute, with symlinks resolved.
func (f *File) Path() string { return f.path }

// OpenFile opens a regular file or a block device for reading, as those of images are. It must be
// closed.
func OpenFile(path string) (*File, error) {
	resolved, _, err := locate(path)
	if err != nil {
		return nil, err
	}
	return openFile(resolved, false)
}

// Close closes a file of [OpenFile].
func (f *File) Close() error { return f.close() }

func (f *File) close() error {
	f.direct.Close()
	return f.f.Close()
}

// ReadAt reads metadata, through the page cache.
func (f *File) ReadAt(p []byte, off int64) (int, error) { return f.f.ReadAt(p, off) }

// readMeta fills p from offset off. What lies beyond the end of the file is
// damage.
func (f *File) readMeta(p []byte, off int64, what string) error {
	if off < 0 || off > f.size || int64(len(p)) > f.size-off {
		return f.beyond(off, int64(len(p)), what)
	}
	if _, err := f.f.ReadAt(p, off); err != nil {
		return f.readError(err, off, len(p), what)
	}
	return nil
}

func (f *File) beyond(off, n int64, what string) error {
	return &DamageError{Path: f.path, Offset: off, What: fmt.Sprintf("%s (%d bytes) lies beyond the end of the file, which has %d bytes", what, n, f.size)}
}

func (f *File) readError(err error, off int64, n int, what string) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &DamageError{Path: f.path, Offset: off, What: what + ": the file was cut short while it was open"}
	}
	return fmt.Errorf("%s: read %s (%d bytes at offset %d): %w", f.path, what, n, off, err)
}

// smallRead is the number of bytes below which reads go through the page cache
// as usual: the kernel may drop a whole readahead block after each uncached
// read of a part of it, and would read it from the disk again for the next.
const smallRead = 128 << 10

// readData fills p with guest data from offset off, without leaving it in the
// page cache where the kernel can do so at no cost.
func (f *File) readData(p []byte, off int64) error {
	if f.direct.Read(p, off) {
		return nil
	}
	conn, err := f.f.SyscallConn()
	if err != nil {
		return f.readError(err, off, len(p), "guest data")
	}
	// Control does not serialise readers, but keeps the descriptor from being
	// closed, and used for another file, meanwhile.
	var readErr error
	if err := conn.Control(func(fd uintptr) { readErr = f.preadFull(int(fd), p, off) }); err != nil {
		readErr = err
	}
	if readErr != nil {
		return f.readError(readErr, off, len(p), "guest data")
	}
	return nil
}

func (f *File) preadFull(fd int, p []byte, off int64) error {
	start, want := off, int64(len(p))
	for len(p) > 0 {
		n := 0
		err := sys.Restart(func() (err error) {
			n, err = f.pread(fd, p, off)
			return err
		})
		if err != nil {
			return err
		}
		if n == 0 {
			return io.EOF
		}
		p, off = p[n:], off+int64(n)
	}
	if f.caching.Load() == cachingDrop {
		// Advice only: a failure costs cache, not data.
		_ = unix.Fadvise(fd, start, want, unix.FADV_DONTNEED)
	}
	return nil
}

func (f *File) pread(fd int, p []byte, off int64) (int, error) {
	if len(p) >= smallRead && f.caching.Load() == cachingDontCache {
		n, err := unix.Preadv2(fd, [][]byte{p}, off, unix.RWF_DONTCACHE)
		if err != unix.EOPNOTSUPP && err != unix.ENOSYS && err != unix.EINVAL {
			return n, err
		}
		f.caching.Store(f.cacheHabit(fd))
	}
	return unix.Pread(fd, p, off)
}

// cacheHabit looks whether the file is in the page cache, at a few places. If
// it mostly is, someone else put it there and may want it there.
func (f *File) cacheHabit(fd int) int32 {
	const probes = 32
	var b [1]byte
	hits := int64(0)
	for i := range int64(probes) {
		n, err := unix.Preadv2(fd, [][]byte{b[:]}, f.size/probes*i, unix.RWF_NOWAIT)
		if n == 1 {
			hits++
		} else if err != unix.EAGAIN {
			return cachingKeep
		}
	}
	if hits > probes/2 {
		return cachingKeep
	}
	return cachingDrop
}

// nextData returns the first range at or after off that the file system does
// not know to be a hole; start == end: none. Where it cannot tell, that is all
// up to the end of the file.
func (f *File) nextData(off int64) (start, end int64) {
	if f.device || off >= f.size {
		return off, f.size
	}
	if p := f.filled.Load(); p != nil {
		filled := *p
		i := sort.Search(len(filled), func(i int) bool { return filled[i].end > off })
		if i == len(filled) {
			return f.size, f.size
		}
		return max(off, filled[i].start), filled[i].end
	}
	return sys.NextData(f.f, off, f.size)
}

// learnHoles asks the file system for all holes, which is then not asked at each jump from one
// place of the file to another, unless there are too many.
func (f *File) learnHoles() {
	if f.device || f.filled.Load() != nil {
		return
	}
	filled := []fileRange{}
	for at := int64(0); at < f.size; {
		start, end := sys.NextData(f.f, at, f.size)
		if start == end {
			break
		}
		if len(filled) == maxFilled {
			return
		}
		filled = append(filled, fileRange{start, end})
		at = end
	}
	f.filled.Store(&filled)
}
