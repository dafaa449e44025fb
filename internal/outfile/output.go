// SPDX-License-Identifier: Apache-2.0

package outfile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/internal/zero"
	"github.com/imgbackup/imgbackup/qcow2"
)

// Spec says what an [Output] is to hold.
type Spec struct {
	Size   int64                // of the disk, bytes
	Create *qcow2.CreateOptions // of a qcow2 image, without the size; nil: raw
	NoLock bool                 // go on where a file system cannot tell whether a file is in use
}

// Output is one disk being written. At, Zero, Finish and the creator are called
// by one goroutine; Write by many.
type Output struct {
	*Place
	Creator *qcow2.Creator // nil: raw

	kernel   *System
	spec     Spec
	f        *os.File
	dir      *folder      // nil: written in place
	part     *partial     // nil: written in place
	existing *os.File     // the file that is to be replaced, locked; nil: none
	naming   *naming      // nil: not published
	pushed   atomic.Int64 // bytes written since the kernel was told to begin writing back
	push     chan struct{}
	pushEnd  chan struct{}
}

// sparseBlock is the unit in which zeros within data become holes, bytes: what
// file systems allocate in.
const sparseBlock = 4096

// pushEvery is how many bytes are written before the kernel is told to begin
// writing back, so that the disk works while we still decode, and little is
// left to do for fsync.
const pushEvery = 32 << 20

// Open makes the partial file of a target, or opens what is written in place. A
// failure leaves nothing.
func Open(ctx context.Context, kernel *System, p *Place, spec Spec) (*Output, error) {
	o := &Output{Place: p, kernel: kernel, spec: spec, push: make(chan struct{}, 1), pushEnd: make(chan struct{})}
	go o.writeback()
	var err error
	switch {
	case p.Device:
		o.f, err = p.openDevice(ctx, kernel, spec)
	case p.Reuse:
		o.f, err = p.openExisting(ctx, kernel, os.O_RDWR, spec.NoLock)
	default:
		err = o.openFile(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, o.Discard())
	}
	return o, nil
}

func (o *Output) openFile(ctx context.Context) (err error) {
	if o.dir, err = openFolder(filepath.Dir(o.Path)); err != nil {
		return err
	}
	o.dir.sweep()
	if o.Exists {
		if o.existing, err = o.openExisting(ctx, o.kernel, os.O_RDONLY, o.spec.NoLock); err != nil {
			return err
		}
	}
	if o.Foreign {
		o.part, err = o.dir.createForeign(o.Base())
	} else {
		o.part, err = o.dir.createPartial(o.Base())
	}
	if err != nil {
		return err
	}
	o.f = o.part.f
	if o.Foreign { // who writes it has to be able to open it
		return nil
	}
	if err := o.takeOverAccess(); err != nil {
		return err
	}
	if o.Format == qcow2.Qcow2 {
		return o.beginQcow2()
	}
	if err := o.f.Truncate(o.spec.Size); err != nil {
		return fmt.Errorf("make a file of %d bytes: %w", o.spec.Size, err)
	}
	return nil
}

// beginQcow2 begins an image with clusters of at least the size asked for.
func (o *Output) beginQcow2() (err error) {
	var co qcow2.CreateOptions
	if o.spec.Create != nil {
		co = *o.spec.Create
	}
	co.Size = o.spec.Size
	if co.ClusterSize, err = qcow2.ClusterSizeFor(co.Size, co.ClusterSize); err != nil {
		return err
	}
	if o.Creator, err = qcow2.NewCreator(imageFile{o}, co); err != nil {
		return err
	}
	return nil
}

// File is what is written to, open for reading, too.
func (o *Output) File() *os.File { return o.f }

// NowAt is the path under which it stands now. Of a foreign output it ends in the final
// name, and whoever writes there writes into the empty file that is there.
func (o *Output) NowAt() string {
	if o.part != nil && !o.part.named {
		return o.part.path()
	}
	return o.Path
}

// Again makes the file of a foreign output anew, for a program that is to be run once
// more: one that gave up may have removed it, as qemu-img does.
func (o *Output) Again() error {
	err := o.part.renew()
	o.f = o.part.f
	return err
}

// FreeSpace returns how many bytes the file system that the output goes to has
// free, and which that is; ok: it is known, and the output is a new file.
func (o *Output) FreeSpace() (filesystem uint64, folder string, free int64, ok bool) {
	if o.dir == nil {
		return 0, "", 0, false
	}
	fi, err := o.dir.f.Stat()
	if err != nil {
		return 0, "", 0, false
	}
	id, ok := sys.Identity(fi)
	free, err = o.kernel.FreeSpace(o.dir.f)
	return id.Dev, o.dir.path, free, ok && err == nil
}

// takeOverAccess gives the new file the owner and mode of the one it replaces, if
// any, so that whoever could use that one can use it. The owner only where we may.
func (o *Output) takeOverAccess() error {
	if o.existing == nil {
		return nil
	}
	fi, err := o.existing.Stat()
	if err != nil {
		return err
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		if err := o.f.Chown(int(st.Uid), int(st.Gid)); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
	}
	return o.f.Chmod(fi.Mode().Perm())
}

// imageFile is how the qcow2 writer sees the partial file.
type imageFile struct{ o *Output }

func (i imageFile) WriteAt(p []byte, off int64) (int, error) {
	if err := i.o.pwrite(p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}
func (i imageFile) Truncate(size int64) error { return i.o.f.Truncate(size) }
func (i imageFile) Sync() error               { return i.o.f.Sync() }

// At tells where in the file the guest range [start, end), which has data,
// goes. Ranges come in ascending order.
func (o *Output) At(start, end int64) ([]qcow2.HostRun, error) {
	if o.Creator == nil {
		return []qcow2.HostRun{{Guest: start, Host: start, Length: end - start}}, nil
	}
	return o.Creator.Allocate(start, end)
}

// Write puts data at an offset of the file. Blocks of zeros become holes in a
// new file, all of which reads as zeros before; in place they are written.
func (o *Output) Write(p []byte, off int64) error {
	if o.InPlace() {
		return o.pwrite(p, off)
	}
	begin := 0 // of the blocks with data that are not yet written
	for pos := 0; pos < len(p); {
		n := min(sparseBlock-int((off+int64(pos))%sparseBlock), len(p)-pos)
		if zero.Is(p[pos : pos+n]) {
			if err := o.pwrite(p[begin:pos], off+int64(begin)); err != nil {
				return err
			}
			begin = pos + n
		}
		pos += n
	}
	return o.pwrite(p[begin:], off+int64(begin))
}

func (o *Output) pwrite(p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	if _, err := o.kernel.Pwrite(o.f, p, off); err != nil {
		if errors.Is(err, unix.ENOSPC) && !o.Device {
			return fmt.Errorf("no space is left in %s: %w", filepath.Dir(o.Path), err)
		}
		return err
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
func (o *Output) writeback() {
	defer close(o.pushEnd)
	for range o.push {
		_ = unix.SyncFileRange(int(o.f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
		o.dropCache()
	}
}

// Zero makes a guest range read as zeros. A new file does so by itself.
func (o *Output) Zero(ctx context.Context, start, end int64) error {
	if !o.InPlace() {
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
		err := o.kernel.ZeroOut(o.f, pos, n)
		if sys.Unsupported(err) {
			err = o.writeZeros(ctx, pos, pos+n)
		}
		if err != nil {
			return fmt.Errorf("%s: write zeros at offset %d: %w", o.Path, pos, err)
		}
	}
	return o.writeZeros(ctx, last, end)
}

func (o *Output) writeZeros(ctx context.Context, start, end int64) error {
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

// Finish makes what was written complete and durable. A file that is reused
// gets the disk's size.
func (o *Output) Finish() error {
	var err error
	switch {
	case o.Creator != nil:
		err = o.Creator.Finish()
	case o.Foreign:
		if err = o.stillMine(); err == nil {
			err = errors.Join(o.takeOverAccess(), o.f.Sync())
		}
	case o.Reuse && !o.Device:
		if err = o.f.Truncate(o.spec.Size); err == nil {
			err = o.f.Sync()
		}
	default:
		err = o.f.Sync()
	}
	if err != nil {
		return fmt.Errorf("make %s durable: %w", o.Path, err)
	}
	o.dropCache()
	return nil
}

// stillMine makes sure that another program has not put a file of its own in the
// place of the one that it was to write.
func (o *Output) stillMine() error {
	same, err := sys.Named(o.dir.f, o.part.name, o.f)
	if err == nil && !same {
		err = errors.New("the program that was to write into the file has replaced it")
	}
	return err
}

// dropCache lets go of what is on the medium already. It is advice: what fails
// costs memory only.
func (o *Output) dropCache() { _ = unix.Fadvise(int(o.f.Fd()), 0, 0, unix.FADV_DONTNEED) }

// Discard ends the output: the partial file, unless it got its final name,
// is removed, and all files are closed, which releases their locks.
func (o *Output) Discard() error {
	close(o.push)
	<-o.pushEnd
	var err error
	switch {
	case o.part != nil:
		err = o.part.remove()
	case o.f != nil:
		err = release(o.f)
	}
	if o.existing != nil {
		_ = release(o.existing)
	}
	if o.dir != nil {
		_ = o.dir.f.Close()
	}
	return err
}
