// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"context"
	"fmt"
	"math"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/view"
)

// fileNode is a disk of a checkpoint, raw.
type fileNode struct {
	fs.Inode
	sys    *system
	domain string
	entry  entry
	disk   diskEntry
}

var (
	_ fs.NodeOpener    = (*fileNode)(nil)
	_ fs.NodeGetattrer = (*fileNode)(nil)
	_ fs.FileReader    = (*openFile)(nil)
	_ fs.FileLseeker   = (*openFile)(nil)
)

func (n *fileNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.sys.file(&out.Attr, n.disk.size, n.entry.created)
	return fs.OK
}

func (n *fileNode) path() string {
	return n.domain + "/" + n.entry.name + "/" + n.disk.name + suffix
}

// Open opens the disk as it was found. Its bytes never change: what the kernel has read of
// them it may keep.
func (n *fileNode) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	ctx, end := n.sys.patient(ctx)
	defer end()
	if flags&unix.O_ACCMODE != unix.O_RDONLY {
		return nil, 0, syscall.EROFS
	}
	d, err := n.open(ctx)
	if err != nil {
		return nil, 0, n.sys.failed(n.path(), err)
	}
	return &openFile{node: n, disk: d}, fuse.FOPEN_KEEP_CACHE, fs.OK
}

func (n *fileNode) open(ctx context.Context) (*view.Disk, error) {
	m, err := n.sys.repo.Manifest(ctx, n.domain, n.entry.name)
	if err != nil {
		return nil, err
	}
	if m.UUID != n.entry.uuid {
		return nil, &chain.GoneError{Domain: n.domain, Checkpoint: n.entry.name}
	}
	c, err := n.sys.reader.Checkpoint(ctx, m, []string{n.disk.name})
	if err != nil {
		return nil, err
	}
	d := c.Disks[0]
	if d.Size() != n.disk.size {
		return nil, fmt.Errorf("the disk has %d bytes now, and had %d", d.Size(), n.disk.size)
	}
	return d, nil
}

// openFile is a file that somebody has open.
type openFile struct {
	node *fileNode
	disk *view.Disk
}

func (f *openFile) Read(ctx context.Context, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	ctx, end := f.node.sys.patient(ctx)
	defer end()
	size := f.disk.Size()
	if off < 0 || off >= size {
		return fuse.ReadResultData(nil), fs.OK
	}
	p = p[:min(int64(len(p)), size-off)]
	if err := f.disk.ReadAt(ctx, p, off); err != nil {
		return nil, f.node.sys.failed(f.node.path(), fmt.Errorf("read of bytes %d to %d: %w", off, off+int64(len(p))-1, err))
	}
	return fuse.ReadResultData(p), fs.OK
}

// Lseek finds data and holes: what the repository holds as zeros is a hole.
func (f *openFile) Lseek(ctx context.Context, off uint64, whence uint32) (uint64, syscall.Errno) {
	ctx, end := f.node.sys.patient(ctx)
	defer end()
	size := f.disk.Size()
	if off > math.MaxInt64 || int64(off) >= size {
		return 0, syscall.ENXIO
	}
	pos, err := int64(off), error(nil)
	switch whence {
	case sys.SeekData:
		pos, err = f.dataFrom(ctx, pos)
	case sys.SeekHole:
		pos, err = f.holeFrom(ctx, pos)
	default:
		return 0, syscall.EINVAL
	}
	if err != nil {
		return 0, f.node.sys.failed(f.node.path(), fmt.Errorf("where data are from byte %d on: %w", off, err))
	}
	if whence == sys.SeekData && pos >= size {
		return 0, syscall.ENXIO
	}
	return uint64(pos), fs.OK
}

func (f *openFile) dataFrom(ctx context.Context, pos int64) (int64, error) {
	for run, err := range f.disk.Zeros(ctx, pos, f.disk.Size()) {
		if err != nil {
			return 0, err
		}
		if run.Start > pos {
			break
		}
		pos = run.End
	}
	return pos, nil
}

func (f *openFile) holeFrom(ctx context.Context, pos int64) (int64, error) {
	for run, err := range f.disk.Zeros(ctx, pos, f.disk.Size()) {
		if err != nil {
			return 0, err
		}
		return max(run.Start, pos), nil
	}
	return f.disk.Size(), nil
}
