// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/nbd"
	"github.com/imgbackup/imgbackup/view"
)

var _ interface {
	nbd.Device
	nbd.Writer
} = (*Cow)(nil)

// blockSize is the unit in which a [Cow] takes parts of the disk over, bytes.
const blockSize = 64 << 10

// maxCowSize bounds the disk that a [Cow] can be of, bytes, so that the bits of its
// blocks take at most 128 MiB of memory.
const maxCowSize = 64 << 40

// Cow is a disk that can be written to: what is written goes into a scratch file,
// and the repository stays as it is. It implements [nbd.Device] and [nbd.Writer].
//
// A flush makes durable what was written before it, and a server that is started
// again with the same file goes on from there at least. What is written and not flushed
// survives the server's own death, as long as the kernel lives that has it: see [session].
//
// A [Filler] copies into the file what it does not have yet; then it is the disk.
type Cow struct {
	base *view.Disk
	file *cowFile
	size int64
	note func(msg string) // never nil

	room func() (int64, error) // what may still be written beside the file, bytes

	traffic traffic
	session *session

	// Held for reading by all who look at blocks one by one, and for writing by
	// who changes many at once.
	many    sync.RWMutex
	stripes [64]sync.Mutex // of blocks that are being taken over

	mu      sync.Mutex
	bitmap  []byte         // blocks that are in the scratch file
	ours    int64          // how many of them are
	changed map[int64]bool // pages of it that have bits not yet on the medium

	flush  sync.Mutex
	failed error // of an earlier flush: what it was to make durable may be lost
}

// OpenCow opens the scratch file at path, or makes it: it, and path with ".map"
// behind it. A file of another checkpoint or disk is refused. note, if any, is told
// what a person should know, also by a [Filler].
func OpenCow(c *view.Checkpoint, d *view.Disk, path string, note func(msg string)) (*Cow, error) {
	size := d.Size()
	if size > maxCowSize {
		return nil, &chain.DiskError{Disk: d.Name, Err: fmt.Errorf(
			"scratch file: the disk has %d bytes, more than the %d that one can be of", size, int64(maxCowSize))}
	}
	blocks := (size + blockSize - 1) / blockSize
	h := &cowHeader{Format: cowFormat, Version: 1, Repository: c.Manifest.RepositoryID, Domain: c.Manifest.Domain,
		Checkpoint: c.Manifest.Checkpoint, UUID: c.Manifest.UUID, Disk: d.Name, Size: size, Block: blockSize}
	file, bitmap, err := openCowFile(path, h, blocks, &sys.FolderSyncer{Note: note})
	if err != nil {
		return nil, &chain.DiskError{Disk: d.Name, Err: fmt.Errorf("scratch file: %w", err)}
	}
	if note == nil {
		note = func(string) {}
	}
	cow := &Cow{base: d, file: file, size: size, note: note, room: file.room, bitmap: bitmap, changed: make(map[int64]bool)}
	if err := cow.begin(blocks); err != nil {
		file.close()
		return nil, &chain.DiskError{Disk: d.Name, Err: fmt.Errorf("scratch file: %w", err)}
	}
	return cow, nil
}

// begin takes over what the server before has written and not flushed, if that is there.
func (c *Cow) begin(blocks int64) error {
	for _, b := range c.bitmap {
		c.ours += int64(bits.OnesCount8(b))
	}
	var left []byte
	var err error
	if c.session, left, err = beginSession(c.file, blocks); err != nil {
		return err
	}
	for i, b := range left {
		if more := b &^ c.bitmap[i]; more != 0 {
			c.bitmap[i] |= more
			c.ours += int64(bits.OnesCount8(more))
			c.changed[int64(i)/pageSize] = true
		}
	}
	if c.session.lost {
		c.note(c.Path() + ": the server before did not end by itself, and what was written to it and not flushed may be lost: " +
			"a guest that still runs has to be reset")
	}
	return c.Flush(context.Background()) // of what was taken over
}

// Path is that of the scratch file.
func (c *Cow) Path() string { return c.file.data.Name() }

// Name is the disk's: vda.
func (c *Cow) Name() string { return c.base.Name }

// Lost reports whether what a guest has written to an earlier server, and has not flushed, may be
// gone, as after a power cut: a guest that ran then must not go on.
func (c *Cow) Lost() bool { return c.session.lost }

// Complete reports whether the scratch file has all of the disk. It may not be durable yet.
func (c *Cow) Complete() bool { return c.Missing() == 0 }

// Missing is how much of the disk is not in the scratch file, bytes, zeros included.
func (c *Cow) Missing() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(c.size-c.ours*blockSize, 0)
}

// Close makes everything durable and closes the file.
func (c *Cow) Close() error {
	err := c.Flush(context.Background())
	if err == nil {
		err = c.session.end()
	}
	c.file.close()
	return err
}

func (c *Cow) has(block int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bitmap[block/8]&(1<<(block%8)) != 0
}

// take makes blocks ours, which have been written. They are not if the session could not be told: else
// a write to one of them that follows would be answered, and gone with this server.
func (c *Cow) take(first, last int64) error {
	return c.session.keep(first, last, c.bytes, func() { c.mark(first, last) })
}

func (c *Cow) mark(first, last int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for b := first; b < last; b++ {
		if c.bitmap[b/8]&(1<<(b%8)) == 0 {
			c.bitmap[b/8] |= 1 << (b % 8)
			c.ours++
			c.changed[b/8/pageSize] = true
		}
	}
}

// bytes are those of the bitmap that have the bits of blocks, with these set.
func (c *Cow) bytes(first, last int64) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	from := first / 8
	all := slices.Clone(c.bitmap[from : (last-1)/8+1])
	for b := first; b < last; b++ {
		all[b/8-from] |= 1 << (b % 8)
	}
	return all
}

// run returns up to where, at most to end, blocks from off on are in the scratch
// file, or are not.
func (c *Cow) run(off, end int64) (to int64, ours bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := off / blockSize
	ours = c.bitmap[b/8]&(1<<(b%8)) != 0
	same := byte(0)
	if ours {
		same = 0xff
	}
	for b++; b*blockSize < end; b++ {
		if b%8 == 0 && c.bitmap[b/8] == same {
			b += 7
			continue
		}
		if c.bitmap[b/8]&(1<<(b%8)) != 0 != ours {
			break
		}
	}
	return min(b*blockSize, end), ours
}

// ReadAt implements [nbd.Device].
func (c *Cow) ReadAt(ctx context.Context, p []byte, off int64) error {
	defer c.traffic.enter()()
	c.many.RLock()
	defer c.many.RUnlock()
	for len(p) > 0 {
		to, ours := c.run(off, off+int64(len(p)))
		part := p[:to-off]
		var err error
		if ours {
			_, err = c.file.data.ReadAt(part, off)
		} else {
			err = c.base.ReadAt(ctx, part, off)
		}
		if err != nil {
			return err
		}
		p, off = p[len(part):], to
	}
	return nil
}

// WriteAt implements [nbd.Writer].
func (c *Cow) WriteAt(ctx context.Context, p []byte, off int64) error {
	defer c.traffic.enter()()
	c.many.RLock()
	defer c.many.RUnlock()
	return c.write(ctx, p, off)
}

func (c *Cow) write(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		n := min(int64(len(p)), blockSize-off%blockSize)
		if err := c.writeBlock(ctx, p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// writeBlock writes within one block, and takes it over if it is not ours yet.
func (c *Cow) writeBlock(ctx context.Context, p []byte, off int64) error {
	b := off / blockSize
	if c.has(b) {
		_, err := c.file.data.WriteAt(p, off)
		return err
	}
	lock := &c.stripes[b%int64(len(c.stripes))]
	lock.Lock()
	defer lock.Unlock()
	start := b * blockSize
	end := min(start+blockSize, c.size)
	if !c.has(b) && int64(len(p)) < end-start {
		whole := make([]byte, end-start)
		if err := c.base.ReadAt(ctx, whole, start); err != nil {
			return fmt.Errorf("the rest of the block that is written to: %w", err)
		}
		copy(whole[off-start:], p)
		p, off = whole, start
	}
	if _, err := c.file.data.WriteAt(p, off); err != nil {
		return err
	}
	return c.take(b, b+1)
}

// WriteZeroes implements [nbd.Writer].
func (c *Cow) WriteZeroes(ctx context.Context, off, length int64, mayTrim bool) error {
	first, last := (off+blockSize-1)/blockSize*blockSize, off+length
	if last != c.size {
		last -= last % blockSize
	}
	if first >= last {
		return c.WriteAt(ctx, make([]byte, length), off) // less than two blocks
	}
	mode := uint32(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
	if !mayTrim {
		mode = unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
	}
	if err := c.zeroBlocks(ctx, first, last, mode); err != nil {
		return err
	}
	return errors.Join(
		c.WriteAt(ctx, make([]byte, first-off), off),
		c.WriteAt(ctx, make([]byte, off+length-last), last))
}

// zeroBlocks makes whole blocks zeros in the scratch file.
func (c *Cow) zeroBlocks(ctx context.Context, start, end int64, mode uint32) error {
	defer c.traffic.enter()()
	c.many.Lock()
	defer c.many.Unlock()
	err := sys.Control(c.file.data, func(fd int) error { return unix.Fallocate(fd, mode, start, end-start) })
	if err == nil {
		return c.take(start/blockSize, (end+blockSize-1)/blockSize)
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%s: %w", c.file.data.Name(), err)
	}
	zeros := make([]byte, 1<<20)
	for pos := start; pos < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(int64(len(zeros)), end-pos)
		if _, err := c.file.data.WriteAt(zeros[:n], pos); err != nil {
			return err
		}
		if err := c.take(pos/blockSize, (pos+n+blockSize-1)/blockSize); err != nil {
			return err
		}
		pos += n
	}
	return nil
}

// Trim implements [nbd.Writer]: whole blocks read as zeros afterwards.
func (c *Cow) Trim(ctx context.Context, off, length int64) error {
	first, last := (off+blockSize-1)/blockSize*blockSize, off+length
	if last != c.size {
		last -= last % blockSize
	}
	if first >= last {
		return nil
	}
	return c.zeroBlocks(ctx, first, last, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE)
}

// Flush implements [nbd.Writer]: first the blocks, then the bits that say so.
func (c *Cow) Flush(context.Context) error {
	defer c.traffic.enter()()
	return c.makeDurable()
}

// makeDurable is Flush, also for who is no guest.
func (c *Cow) makeDurable() error {
	c.flush.Lock()
	defer c.flush.Unlock()
	if c.failed != nil {
		return &flushError{fmt.Errorf("an earlier flush of the scratch file failed, and what it was to save may be lost: %w", c.failed)}
	}
	// Bits that are set from here on belong to the next flush.
	c.mu.Lock()
	pages := make(map[int64][]byte, len(c.changed))
	for n := range c.changed {
		end := min((n+1)*pageSize, int64(len(c.bitmap)))
		pages[n] = slices.Clone(c.bitmap[n*pageSize : end])
	}
	clear(c.changed)
	c.mu.Unlock()
	err := c.file.sync(c.file.data)
	for n, page := range pages {
		if err == nil {
			_, err = c.file.bits.WriteAt(page, headerSize+n*pageSize)
		}
	}
	if err == nil && len(pages) > 0 {
		err = c.file.sync(c.file.bits)
	}
	if c.failed = err; err != nil { // the kernel tells of lost pages only once
		c.session.doubt()
		return &flushError{err}
	}
	return nil
}

// flushError is of a scratch file that can't be relied on any more.
type flushError struct{ error }

func (e *flushError) Unwrap() error { return e.error }

// zeros is where the disk, with what was written, is known to be zeros, of the part in
// [start, end).
func (c *Cow) zeros(ctx context.Context, start, end int64) bitmapstore.Runs {
	return bitmapstore.Join(func(yield func(bitmapstore.Run, error) bool) {
		for pos := start; pos < end; {
			to, ours := c.run(pos, end)
			part := c.base.Zeros(ctx, pos, to)
			if ours {
				part = c.holes(pos, to)
			}
			for run, err := range part {
				if !yield(run, err) || err != nil {
					return
				}
			}
			pos = to
		}
	})
}

// holes is where the scratch file has none of [start, end).
func (c *Cow) holes(start, end int64) bitmapstore.Runs {
	return func(yield func(bitmapstore.Run, error) bool) {
		for pos := start; pos < end; {
			data, to := sys.NextData(c.file.data, pos, end)
			if pos < data && !yield(bitmapstore.Run{Start: pos, End: data}, nil) {
				return
			}
			pos = to
		}
	}
}

// written is the set of blocks that were written to, of those in [start, end).
func (c *Cow) written(start, end int64) bitmapstore.Runs {
	return func(yield func(bitmapstore.Run, error) bool) {
		for pos := start; pos < end; {
			to, ours := c.run(pos, end)
			if ours && !yield(bitmapstore.Run{Start: pos, End: to}, nil) {
				return
			}
			pos = to
		}
	}
}
