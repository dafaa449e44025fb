// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// A scratch file is two files: FILE has the blocks that were written, or filled, at their
// places in the disk and is sparse; FILE.map says which they are. FILE.map begins
// with a header of headerSize bytes, one line of JSON filled up with spaces and
// newlines, that names the checkpoint and the disk; a bitmap follows, one bit per
// block, the lowest bit of a byte first, filled up to a page; then what a [session] keeps.
//
// A bit is set on the medium only when its block is durable, and is never cleared:
// so the map is written in place, and a crash at any moment leaves one that is
// right. When all are set FILE is the disk, a raw image that needs nothing else.
const (
	headerSize = 4096
	pageSize   = 4096 // of the bitmap, the unit of writing it, bytes
	mapSuffix  = ".map"
)

// bitmapSpace is how many bytes of the map the bits of so many blocks take.
func bitmapSpace(blocks int64) int64 {
	return ((blocks+7)/8 + pageSize - 1) / pageSize * pageSize
}

// mapSize is the size of a whole map, bytes.
func mapSize(blocks int64) int64 { return 2*headerSize + 2*bitmapSpace(blocks) }

// cowHeader says what a scratch file belongs to.
type cowHeader struct {
	Format     string `json:"format"`
	Version    int    `json:"version"`
	Repository string `json:"repository_id"`
	Domain     string `json:"domain"`
	Checkpoint string `json:"checkpoint"`
	UUID       string `json:"uuid"`
	Disk       string `json:"disk"`
	Size       int64  `json:"virtual_size"`
	Block      int64  `json:"block_size"`
}

const cowFormat = "imgbackup-cow"

func (h *cowHeader) encode() ([]byte, error) {
	line, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	if len(line)+1 > headerSize {
		return nil, errors.New("the names in the scratch file's header are too long")
	}
	b := bytes.Repeat([]byte{' '}, headerSize)
	copy(b, line)
	b[headerSize-1] = '\n'
	return b, nil
}

// InUseError says that another process has a scratch file.
type InUseError struct{ Path string }

func (e *InUseError) Error() string {
	return e.Path + " is in use: another server has it open"
}

// cowFile is the pair of files.
type cowFile struct {
	data, bits *os.File
	sync       func(f *os.File) error // syncData, but for tests
}

// openCowFile opens or makes the files, for this process alone, and returns the
// bitmap.
func openCowFile(path string, h *cowHeader, blocks int64, folders *sys.FolderSyncer) (_ *cowFile, bitmap []byte, err error) {
	header, err := h.encode()
	if err != nil {
		return nil, nil, err
	}
	f := &cowFile{sync: syncData}
	defer func() {
		if err != nil {
			f.close()
		}
	}()
	// A file that was there stays, whatever becomes of this.
	made := true
	f.data, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, fs.ErrExist) {
		made = false
		f.data, err = os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	}
	if err != nil {
		return nil, nil, err
	}
	switch err := sys.TryLock(f.data); {
	case errors.Is(err, sys.ErrLocked):
		return nil, nil, &InUseError{path}
	case err != nil:
		return nil, nil, fmt.Errorf("lock the scratch file: %w", err)
	}
	st, err := f.data.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s: the scratch file is no regular file", path)
	}
	f.bits, err = os.OpenFile(path+mapSuffix, os.O_RDWR|unix.O_NOFOLLOW, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist) && st.Size() == 0:
		if bitmap, err = f.create(path, h, header, blocks, folders); err != nil {
			_ = f.data.Truncate(0) // as it was: the next try may begin anew
		}
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, fmt.Errorf("%s is there and %s is not: it is no scratch file of this program, or not a whole one; remove it, or name another", path, path+mapSuffix)
	case err != nil:
		return nil, nil, err
	default:
		bitmap, err = f.resume(h, header, st.Size(), blocks, folders)
	}
	if err != nil && made {
		_ = os.Remove(path) // it is empty
	}
	if err != nil {
		return nil, nil, err
	}
	return f, bitmap, nil
}

// create makes a new scratch file. The map comes last and whole: without it the
// file counts as empty.
func (f *cowFile) create(path string, h *cowHeader, header []byte, blocks int64, folders *sys.FolderSyncer) ([]byte, error) {
	if err := f.data.Truncate(h.Size); err != nil {
		return nil, err
	}
	part := path + mapSuffix + ".new"
	if err := os.Remove(part); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var err error
	if f.bits, err = os.OpenFile(part, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, err
	}
	bitmap := make([]byte, (blocks+7)/8)
	_, err = f.bits.Write(header)
	err = errors.Join(err, f.bits.Truncate(mapSize(blocks)), reserve(f.bits, mapSize(blocks)), f.bits.Sync(), f.data.Sync())
	if err == nil {
		err = os.Rename(part, path+mapSuffix)
	}
	if err != nil {
		_ = os.Remove(part) // of no use to anybody
		return nil, err
	}
	if err := folders.SyncPath(filepath.Dir(path)); err != nil {
		// A map without its file would stand in the next try's way.
		return nil, errors.Join(err, os.Remove(path+mapSuffix))
	}
	return bitmap, nil
}

// reserve sees to it that a full file system keeps no bit from being written.
func reserve(f *os.File, size int64) error {
	err := sys.Control(f, func(fd int) error { return unix.Fallocate(fd, 0, 0, size) })
	if sys.Unsupported(err) {
		return nil
	}
	return err
}

// resume reads what an earlier server has left, and makes the names of both files durable: that
// one may have been killed before.
func (f *cowFile) resume(h *cowHeader, header []byte, size, blocks int64, folders *sys.FolderSyncer) ([]byte, error) {
	was := make([]byte, headerSize)
	if _, err := io.ReadFull(f.bits, was); err != nil {
		return nil, fmt.Errorf("%s: the scratch file's map is cut off: %w", f.bits.Name(), err)
	}
	if !bytes.Equal(was, header) {
		var other cowHeader
		if err := json.Unmarshal(was, &other); err != nil || other.Format != cowFormat {
			return nil, fmt.Errorf("%s is not the map of a scratch file", f.bits.Name())
		}
		return nil, fmt.Errorf("%s belongs to disk %.80q of checkpoint %.80q (%.40s) of domain %.80q, not to disk %s of %s (%s): name another file",
			f.data.Name(), other.Disk, other.Checkpoint, other.UUID, other.Domain, h.Disk, h.Checkpoint, h.UUID)
	}
	st, err := f.bits.Stat()
	if err != nil {
		return nil, err
	}
	if size != h.Size || st.Size() != mapSize(blocks) {
		return nil, fmt.Errorf("%s and its map have %d and %d bytes instead of %d and %d: one of them was cut off", f.data.Name(), size, st.Size(), h.Size, mapSize(blocks))
	}
	bitmap := make([]byte, (blocks+7)/8)
	if _, err := io.ReadFull(f.bits, bitmap); err != nil {
		return nil, err
	}
	return bitmap, folders.SyncPath(filepath.Dir(f.data.Name()))
}

func (f *cowFile) close() {
	for _, file := range []*os.File{f.data, f.bits} {
		if file != nil {
			_ = file.Close() // what had to be durable has been synced
		}
	}
}

// syncData makes what was written to a file durable.
func syncData(f *os.File) error {
	if err := sys.Control(f, unix.Fdatasync); err != nil {
		return fmt.Errorf("%s: make it durable: %w", f.Name(), err)
	}
	return nil
}
