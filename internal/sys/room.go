// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// CheckGrowth asks everything that can refuse a program that we start to let the
// regular file f grow by n bytes, and returns the refusal, or nil: the limit on the size
// of files, the free space, the largest file that the file system has, and quotas. No
// call tells of quotas of every kind, so a file of n bytes is allocated beside f, with
// its owner, and removed. Where no file can be made there (a folder that is not ours) the
// file system's own answers have to do.
//
// f has to be named by its path. The error wraps EFBIG, ENOSPC, EDQUOT or what else the
// kernel answered.
func CheckGrowth(f *os.File, n int64) error { return machine.checkGrowth(f, n) }

// grower is what is asked. Tests put their own in.
type grower struct {
	limit    func() (uint64, error)                            // RLIMIT_FSIZE, bytes
	free     func(f *os.File) (int64, error)                   // of its file system, bytes
	allocate func(f *os.File, mode uint32, off, n int64) error // fallocate(2)
}

var machine = grower{limit: fileSizeLimit, free: FreeSpace, allocate: fallocate}

func (g grower) checkGrowth(f *os.File, n int64) error {
	st, err := Stat(f)
	if err != nil {
		return err
	}
	limit, err := g.limit()
	if err != nil {
		return err
	}
	if want := uint64(st.Size + n); want > limit {
		return fmt.Errorf("files may have %d bytes (ulimit -f, LimitFSIZE=), and up to %d are needed: %w", limit, want, unix.EFBIG)
	}
	have, err := g.free(f)
	if err != nil {
		return err
	}
	if have < n {
		return fmt.Errorf("%d bytes are free, %d are needed: %w", have, n, unix.ENOSPC)
	}
	return g.tryBeside(f, &st, n)
}

// tryBeside allocates n bytes in a new file beside f.
func (g grower) tryBeside(f *os.File, st *unix.Stat_t, n int64) error {
	dir, err := os.OpenFile(filepath.Dir(f.Name()), os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return cannotTry(err)
	}
	defer func() { _ = dir.Close() }() // only read
	_ = Sweep(dir, func(name string, folder bool) bool { return !folder && strings.HasPrefix(name, roomPrefix) })
	t, name, err := CreateLocked(dir, roomName, 0o600)
	if err != nil {
		return cannotTry(err)
	}
	defer func() { _ = t.Close() }() // nothing in it is wanted
	// Without a name it goes with us, however we end.
	if err := UnlinkAt(dir, name); err != nil {
		return err
	}
	// Whose quota it is; who may not give files away has one quota with them, or none.
	_ = t.Chown(int(st.Uid), int(st.Gid))
	// The file system says that such an offset is too large before anything else.
	if err := g.allocate(t, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, st.Size, n); errors.Is(err, unix.EFBIG) {
		return fmt.Errorf("a file of %d bytes is too large for its file system: %w", st.Size+n, err)
	}
	err = g.allocate(t, 0, 0, n)
	if Unsupported(err) {
		err = fill(t, n)
	}
	if err != nil {
		return fmt.Errorf("%d bytes more are needed, which cannot be had beside it: %w", n, err)
	}
	return nil
}

// cannotTry passes on the errors that a quota answers. All others say that nothing can
// be found out this way.
func cannotTry(err error) error {
	if errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.ENOSPC) {
		return err
	}
	return nil
}

// fill writes bytes that no file system stores in less.
func fill(f *os.File, n int64) error {
	buf := make([]byte, min(n, 1<<20))
	_, _ = rand.Read(buf) // never fails
	for n > 0 {
		w, err := f.Write(buf[:min(n, int64(len(buf)))])
		if err != nil {
			return err
		}
		n -= int64(w)
	}
	return f.Sync() // network file systems refuse it only now
}

func fallocate(f *os.File, mode uint32, off, n int64) error {
	return Control(f, func(fd int) error { return unix.Fallocate(fd, mode, off, n) })
}

func fileSizeLimit() (uint64, error) {
	var r unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_FSIZE, &r)
	return r.Cur, err
}

// The file is called .imgbackup-room-<16 hex digits>.
const roomPrefix = ".imgbackup-room-"

func roomName() string {
	var r [8]byte
	_, _ = rand.Read(r[:]) // never fails
	return roomPrefix + hex.EncodeToString(r[:])
}
