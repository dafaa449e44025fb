// SPDX-License-Identifier: Apache-2.0

package restore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/qcow2"
)

// output is one disk being written. place, zero and finish are called by one
// goroutine; write by many.
type output struct {
	*place
	sys        *system
	f          *os.File
	dir        *folder        // nil: device
	part       *partial       // nil: device
	existing   *os.File       // the file that is to be replaced, locked; nil: none
	creator    *qcow2.Creator // nil: raw
	withBitmap bool           // the image gets the checkpoint's bitmap
	pushed     atomic.Int64   // bytes written since the kernel was told to begin writing back
	push       chan struct{}
	pushEnd    chan struct{}
}

// sparseBlock is the unit in which zeros within data become holes, bytes: what
// file systems allocate in.
const sparseBlock = 4096

// pushEvery is how many bytes are written before the kernel is told to begin
// writing back, so that the disk works while we still decode, and little is
// left to do for fsync.
const pushEvery = 32 << 20

// openOutput makes the partial file of a target, or opens its device. A failure
// leaves nothing.
func openOutput(ctx context.Context, sys *system, p *place, o Options) (*output, error) {
	out := &output{place: p, sys: sys, push: make(chan struct{}, 1), pushEnd: make(chan struct{})}
	go out.writeback()
	var err error
	if p.device {
		out.f, err = p.openDevice(ctx, sys, o.NoLock)
	} else {
		err = out.openFile(ctx, o)
	}
	if err != nil {
		return nil, errors.Join(err, out.discard())
	}
	return out, nil
}

func (o *output) openFile(ctx context.Context, opts Options) (err error) {
	if o.dir, err = openFolder(filepath.Dir(o.path)); err != nil {
		return fmt.Errorf("disk %s: %w", o.Disk, err)
	}
	o.dir.sweep()
	if o.exists {
		if o.existing, err = o.openExisting(ctx, opts.NoLock); err != nil {
			return err
		}
	}
	if o.part, err = o.dir.createPartial(o.base()); err != nil {
		return fmt.Errorf("disk %s: %w", o.Disk, err)
	}
	o.f = o.part.f
	if o.existing != nil {
		if err := takeOverAccess(o.existing, o.f); err != nil {
			return fmt.Errorf("disk %s: %w", o.Disk, err)
		}
	}
	if o.Format == qcow2.Qcow2 {
		return o.beginQcow2(opts.Continue)
	}
	if err := o.f.Truncate(o.disk.Size); err != nil {
		return fmt.Errorf("disk %s: make a file of %d bytes: %w", o.Disk, o.disk.Size, err)
	}
	return nil
}

func (o *output) beginQcow2(withBitmap bool) error {
	cs, err := qcow2.ClusterSizeFor(o.disk.Size, o.disk.ClusterSize)
	if err != nil {
		return fmt.Errorf("disk %s: %w", o.Disk, err)
	}
	co := qcow2.CreateOptions{Size: o.disk.Size, ClusterSize: cs}
	o.withBitmap = withBitmap
	if withBitmap {
		co.Bitmap = &qcow2.CreateBitmap{Name: o.disk.Bitmap, Granularity: o.disk.Granularity}
	}
	if o.creator, err = qcow2.NewCreator(imageFile{o}, co); err != nil {
		return fmt.Errorf("disk %s: %w", o.Disk, err)
	}
	return nil
}

// takeOverAccess gives the new file the owner and mode of the one it replaces,
// so that whoever could use that one can use it. The owner only where we may.
func takeOverAccess(from, to *os.File) error {
	fi, err := from.Stat()
	if err != nil {
		return err
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		if err := to.Chown(int(st.Uid), int(st.Gid)); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
	}
	return to.Chmod(fi.Mode().Perm())
}

// imageFile is how the qcow2 writer sees the partial file.
type imageFile struct{ o *output }

func (i imageFile) WriteAt(p []byte, off int64) (int, error) {
	if err := i.o.pwrite(p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}
func (i imageFile) Truncate(size int64) error { return i.o.f.Truncate(size) }
func (i imageFile) Sync() error               { return i.o.f.Sync() }

// at tells where in the file the guest range [start, end), which has data,
// goes. Ranges come in ascending order.
func (o *output) at(start, end int64) ([]qcow2.HostRun, error) {
	if o.creator == nil {
		return []qcow2.HostRun{{Guest: start, Host: start, Length: end - start}}, nil
	}
	return o.creator.Allocate(start, end)
}

// write puts data at an offset of the file. Blocks of zeros become holes in a
// file, all of which reads as zeros before; a device gets them written.
func (o *output) write(p []byte, off int64) error {
	if o.device {
		return o.pwrite(p, off)
	}
	begin := 0 // of the blocks with data that are not yet written
	for pos := 0; pos < len(p); {
		n := min(sparseBlock-int((off+int64(pos))%sparseBlock), len(p)-pos)
		if isZero(p[pos : pos+n]) {
			if err := o.pwrite(p[begin:pos], off+int64(begin)); err != nil {
				return err
			}
			begin = pos + n
		}
		pos += n
	}
	return o.pwrite(p[begin:], off+int64(begin))
}

// isZero tells whether all bytes of a non-empty slice are zero.
func isZero(p []byte) bool { return p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1]) }

func (o *output) pwrite(p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	if _, err := o.sys.pwrite(o.f, p, off); err != nil {
		if errors.Is(err, unix.ENOSPC) && !o.device {
			return fmt.Errorf("disk %s: no space is left in %s: %w", o.Disk, o.dir.path, err)
		}
		return fmt.Errorf("disk %s: %w", o.Disk, err)
	}
	if o.pushed.Add(int64(len(p))) >= pushEvery {
		select {
		case o.push <- struct{}{}:
			o.pushed.Store(0)
		default: // the last one is not through yet
		}
	}
	return nil
}

// writeback tells the kernel to begin writing whenever there is enough to
// write. What fails here fails again, and is reported, in fsync.
func (o *output) writeback() {
	defer close(o.pushEnd)
	for range o.push {
		_ = unix.SyncFileRange(int(o.f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	}
}

// zero makes a guest range read as zeros. A new file does so by itself.
func (o *output) zero(ctx context.Context, start, end int64) error {
	if !o.device {
		return nil
	}
	first := (start + zeroAlign - 1) / zeroAlign * zeroAlign
	last := end / zeroAlign * zeroAlign
	if first >= last {
		return o.writeZeros(ctx, start, end)
	}
	if err := o.writeZeros(ctx, start, first); err != nil {
		return err
	}
	const step = 256 << 20 // between looks at the context
	for pos := first; pos < last; pos += step {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(step, last-pos)
		err := o.sys.zeroOut(o.f, pos, n)
		if unsupported(err) {
			err = o.writeZeros(ctx, pos, pos+n)
		}
		if err != nil {
			return fmt.Errorf("disk %s: %s: write zeros at offset %d: %w", o.Disk, o.path, pos, err)
		}
	}
	return o.writeZeros(ctx, last, end)
}

func (o *output) writeZeros(ctx context.Context, start, end int64) error {
	if start >= end {
		return nil
	}
	zeros := make([]byte, min(end-start, 1<<20))
	for pos := start; pos < end; pos += int64(len(zeros)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := o.pwrite(zeros[:min(end-pos, int64(len(zeros)))], pos); err != nil {
			return err
		}
	}
	return nil
}

// finish makes what was written complete and durable.
func (o *output) finish() error {
	var err error
	if o.creator != nil {
		err = o.creator.Finish()
	} else {
		err = o.f.Sync()
	}
	if err != nil {
		return fmt.Errorf("disk %s: make %s durable: %w", o.Disk, o.path, err)
	}
	return nil
}

// discard ends the output: the partial file, unless it got its final name,
// is removed, and all files are closed, which releases their locks.
func (o *output) discard() error {
	close(o.push)
	<-o.pushEnd
	var err error
	switch {
	case o.part != nil:
		err = o.part.remove()
	case o.f != nil:
		err = o.f.Close()
	}
	if o.existing != nil {
		_ = o.existing.Close()
	}
	if o.dir != nil {
		_ = o.dir.f.Close()
	}
	return err
}
