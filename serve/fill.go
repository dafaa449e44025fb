// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/internal/zero"
)

// fillUnit is how much the fill reads at once, bytes: what a chunk can have at most.
const fillUnit = 1 << 20

// sparseUnit is the unit in which zeros stay holes within a block, bytes.
const sparseUnit = 4096

// missing returns the first part of [off, end) that is not in the scratch file; from == to: all
// of it is.
func (c *Cow) missing(off, end int64) (from, to int64) {
	for off < end {
		to, ours := c.run(off, end)
		if !ours {
			return off, to
		}
		off = to
	}
	return end, end
}

// fillData puts into the scratch file what data, which begin at the block at start, have of
// blocks that are not in it. A block that a guest has written to meanwhile stays the guest's: it
// is asked under the lock under which guests take blocks over.
func (c *Cow) fillData(data []byte, start int64) error {
	for at := start; at < start+int64(len(data)); at += blockSize {
		block := data[at-start : min(at-start+blockSize, int64(len(data)))]
		if err := c.alone(at/blockSize, func() error { return c.fillBlock(block, at) }); err != nil {
			return err
		}
	}
	return nil
}

// alone calls do, if a block is not ours, when nobody else can take it over.
func (c *Cow) alone(block int64, do func() error) error {
	c.many.RLock()
	defer c.many.RUnlock()
	lock := &c.stripes[block%int64(len(c.stripes))]
	lock.Lock()
	defer lock.Unlock()
	if c.has(block) {
		return nil
	}
	return do()
}

// fillBlock writes a block that is not ours, and takes it over. Where an earlier server has left
// anything in its place all of it is written, else only what is not zeros.
func (c *Cow) fillBlock(block []byte, at int64) error {
	end := at + int64(len(block))
	if zero.Is(block) {
		return c.zeroMissing(at, end)
	}
	var err error
	if from, to := sys.NextData(c.file.data, at, end); from < to {
		_, err = c.file.data.WriteAt(block, at)
	} else {
		err = c.writeSparse(block, at)
	}
	if err != nil {
		return err
	}
	return c.take(at/blockSize, at/blockSize+1)
}

// writeSparse writes what is not zeros.
func (c *Cow) writeSparse(p []byte, at int64) error {
	isData := func(i int) bool { return i < len(p) && !zero.Is(p[i:min(i+sparseUnit, len(p))]) }
	for i := 0; i < len(p); i += sparseUnit {
		start := i
		for isData(i) {
			i += sparseUnit
		}
		if start == i {
			continue
		}
		if _, err := c.file.data.WriteAt(p[start:min(i, len(p))], at+int64(start)); err != nil {
			return err
		}
	}
	return nil
}

// zeroUnit is how much of a disk's zeros is taken over at once, bytes.
const zeroUnit = 1 << 30

// fillZeros makes blocks ours that are zeros in the repository and not in the scratch file.
// start is a block's, and end one's or the disk's.
func (c *Cow) fillZeros(ctx context.Context, start, end int64) error {
	for pos := start; pos < end; {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		var err error
		to := min(pos+zeroUnit, end)
		if c.many.TryLock() {
			err = c.zeroMissing(pos, to)
			c.many.Unlock()
		} else { // nobody waits for that
			to = min(pos+blockSize, end)
			err = c.alone(pos/blockSize, func() error { return c.zeroMissing(pos, to) })
		}
		if err != nil {
			return err
		}
		pos = to
	}
	return nil
}

// zeroMissing makes ours, as zeros, what is not ours of [start, end). Nobody else may take any
// of it over meanwhile. What an earlier server has left in the file goes.
func (c *Cow) zeroMissing(start, end int64) error {
	for {
		from, to := c.missing(start, end)
		if from == to {
			return nil
		}
		for at := from; at < to; {
			data, behind := sys.NextData(c.file.data, at, to)
			if data < behind {
				if err := c.punch(data, behind); err != nil {
					return err
				}
			}
			at = behind
		}
		if err := c.take(from/blockSize, (to+blockSize-1)/blockSize); err != nil {
			return err
		}
		start = to
	}
}

// punch makes a part of the scratch file a hole, or zeros where there are no holes.
func (c *Cow) punch(start, end int64) error {
	const mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	err := sys.Control(c.file.data, func(fd int) error { return unix.Fallocate(fd, mode, start, end-start) })
	if err == nil {
		return nil
	}
	if !sys.Unsupported(err) {
		return fmt.Errorf("%s: make a hole: %w", c.Path(), err)
	}
	zeros := make([]byte, fillUnit)
	for ; start < end; start += fillUnit {
		if _, err := c.file.data.WriteAt(zeros[:min(fillUnit, end-start)], start); err != nil {
			return err
		}
	}
	return nil
}

// spare is what the fill leaves of the scratch file's file system to guests, bytes.
const spare = 64 << 20

// noRoom is the error of a fill that has to wait for room.
type noRoom struct {
	free int64 // bytes
	err  error // of a write; nil: none was tried
}

func (e *noRoom) Error() string { return fmt.Sprintf("its file system has %d bytes left", e.free) }

func (e *noRoom) Unwrap() error { return e.err }

// checkRoom returns a *noRoom if there is not enough for n bytes more.
func (c *Cow) checkRoom(n int64) error {
	free, err := c.room()
	if err == nil && free-n < spare {
		return &noRoom{free: free}
	}
	return nil // where nobody tells, writing will
}

// roomError is err, as a *noRoom if it is one.
func (c *Cow) roomError(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		free, _ := c.room() // 0 where nobody tells
		return &noRoom{free, err}
	}
	return err
}
