// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/drill"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/machine"
	"github.com/imgbackup/imgbackup/serve"
)

// maxWritten is how much a guest may write to its disks, all together, bytes; it is less
// where the scratch space has less than twice that.
const maxWritten = 32 << 30

// scratch is a disk that a guest may write to, within bounds. Nothing of it has to last,
// so that flushes cost nothing.
type scratch struct {
	*serve.Cow
	room *room
}

// room is what guests may still write, by what they have asked for.
type room struct {
	dir   string
	limit int64        // bytes that the files in dir may take
	asked atomic.Int64 // bytes since the files were looked at
}

// lookAfter is how much may be written before the files are looked at again, bytes.
const lookAfter = 16 << 20

// errFull is what a guest is answered that has written too much.
var errFull = fmt.Errorf("a guest may write no more than that: %w", unix.ENOSPC)

func newRoom(dir string) (*room, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	free, err := sys.FreeSpace(f)
	return &room{dir: dir, limit: min(maxWritten, free/2)}, errors.Join(err, f.Close())
}

// take notes n more bytes, and fails when there is no room for them.
func (r *room) take(n int64) error {
	if asked := r.asked.Add(n); asked < lookAfter {
		return nil
	}
	r.asked.Store(0)
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return err
	}
	var used int64
	for _, e := range entries {
		var st unix.Stat_t
		if unix.Lstat(filepath.Join(r.dir, e.Name()), &st) == nil {
			used += st.Blocks * 512
		}
	}
	if n > r.limit-used {
		r.asked.Store(lookAfter) // the next one looks, too
		return errFull
	}
	return nil
}

// WriteAt implements nbd.Writer.
func (s *scratch) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := s.room.take(int64(len(p))); err != nil {
		return err
	}
	return s.Cow.WriteAt(ctx, p, off)
}

// WriteZeroes implements nbd.Writer.
func (s *scratch) WriteZeroes(ctx context.Context, off, length int64, mayTrim bool) error {
	if !mayTrim { // which takes room
		if err := s.room.take(length); err != nil {
			return err
		}
	}
	return s.Cow.WriteZeroes(ctx, off, length, mayTrim)
}

// Flush implements nbd.Writer.
func (s *scratch) Flush(context.Context) error { return nil }

// disksOf makes scratch files of the subject's disks in a new folder below dir.
func disksOf(ctx context.Context, s *drill.Subject, dir string) ([]machine.Disk, func() error, error) {
	c, err := s.View(ctx)
	if err != nil {
		return nil, nil, err
	}
	in, err := os.MkdirTemp(dir, "disks-")
	if err != nil {
		return nil, nil, err
	}
	var open []*serve.Cow
	discard := func() error {
		for _, cow := range open {
			_ = cow.Close() // what it would save is not wanted
		}
		return os.RemoveAll(in)
	}
	room, err := newRoom(in)
	if err != nil {
		return nil, nil, errors.Join(err, discard())
	}
	var disks []machine.Disk
	for _, d := range c.Disks {
		cow, err := serve.OpenCow(c, d, filepath.Join(in, d.Name), nil)
		if err != nil {
			return nil, nil, errors.Join(err, discard())
		}
		open = append(open, cow)
		disks = append(disks, machine.Disk{Name: d.Name, Size: d.Size(), Device: &scratch{cow, room}})
	}
	return disks, discard, nil
}
