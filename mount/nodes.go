// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"context"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/imgbackup/imgbackup/chain"
)

// The folders and the link; files are in file.go. Each asks its shelf, and makes a new node
// only where the one that is there is of another checkpoint.

type rootNode struct {
	fs.Inode
	sys *system
}

var (
	_ fs.NodeReaddirer = (*rootNode)(nil)
	_ fs.NodeLookuper  = (*rootNode)(nil)
	_ fs.NodeGetattrer = (*rootNode)(nil)
)

func (n *rootNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.sys.folder(&out.Attr, n.sys.begun)
	return fs.OK
}

func (n *rootNode) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	ctx, end := n.sys.patient(ctx)
	defer end()
	domains, err := n.sys.repo.Domains(ctx)
	if err != nil {
		return nil, n.sys.failed("", err)
	}
	var list []fuse.DirEntry
	for _, name := range domains {
		list = append(list, fuse.DirEntry{Name: name, Mode: syscall.S_IFDIR})
	}
	return fs.NewListDirStream(list), fs.OK
}

func (n *rootNode) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	ctx, end := n.sys.patient(ctx)
	defer end()
	if chain.CheckDomain(name) != nil {
		return nil, syscall.ENOENT
	}
	s := n.sys.shelf(name)
	entries, unread, err := s.all(ctx)
	if err != nil {
		return nil, n.sys.failed(name, err)
	}
	if len(entries) == 0 && !unread {
		return nil, syscall.ENOENT
	}
	n.sys.folder(&out.Attr, newestOf(entries, n.sys.begun))
	if child := n.GetChild(name); child != nil {
		return child, fs.OK
	}
	return n.NewInode(ctx, &domainNode{sys: n.sys, shelf: s}, fs.StableAttr{Mode: syscall.S_IFDIR}), fs.OK
}

// newestOf is when the newest of the checkpoints was made.
func newestOf(entries []entry, none time.Time) time.Time {
	if len(entries) == 0 {
		return none
	}
	return entries[len(entries)-1].created
}

type domainNode struct {
	fs.Inode
	sys   *system
	shelf *shelf
}

var (
	_ fs.NodeReaddirer = (*domainNode)(nil)
	_ fs.NodeLookuper  = (*domainNode)(nil)
	_ fs.NodeGetattrer = (*domainNode)(nil)
)

func (n *domainNode) Getattr(ctx context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	ctx, end := n.sys.patient(ctx)
	defer end()
	entries, _, err := n.shelf.all(ctx)
	if err != nil {
		return n.sys.failed(n.shelf.domain, err)
	}
	n.sys.folder(&out.Attr, newestOf(entries, n.sys.begun))
	return fs.OK
}

func (n *domainNode) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	ctx, end := n.sys.patient(ctx)
	defer end()
	entries, _, err := n.shelf.all(ctx)
	if err != nil {
		return nil, n.sys.failed(n.shelf.domain, err)
	}
	var list []fuse.DirEntry
	for i := range entries {
		list = append(list, fuse.DirEntry{Name: entries[i].name, Mode: syscall.S_IFDIR})
	}
	if _, ok, err := n.shelf.newest(ctx); ok && err == nil {
		list = append(list, fuse.DirEntry{Name: latest, Mode: syscall.S_IFLNK})
	}
	return fs.NewListDirStream(list), fs.OK
}

func (n *domainNode) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	ctx, end := n.sys.patient(ctx)
	defer end()
	e, ok, err := n.shelf.find(ctx, name)
	if err != nil {
		return nil, n.sys.failed(n.shelf.domain, err)
	}
	child := n.GetChild(name)
	if !ok {
		return n.lookupLatest(ctx, name, child, out)
	}
	n.sys.folder(&out.Attr, e.created)
	if child != nil {
		if was, ok := child.Operations().(*checkpointNode); ok && was.entry.uuid == e.uuid {
			return child, fs.OK
		}
	}
	return n.NewInode(ctx, &checkpointNode{sys: n.sys, domain: n.shelf.domain, entry: e}, fs.StableAttr{Mode: syscall.S_IFDIR}), fs.OK
}

func (n *domainNode) lookupLatest(ctx context.Context, name string, child *fs.Inode, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if name != latest {
		return nil, syscall.ENOENT
	}
	to, ok, err := n.shelf.newest(ctx)
	if err != nil {
		return nil, n.sys.failed(n.shelf.domain, err)
	}
	if !ok {
		return nil, syscall.ENOENT
	}
	n.sys.link(&out.Attr, to)
	if child != nil {
		if _, ok := child.Operations().(*latestNode); ok {
			return child, fs.OK
		}
	}
	return n.NewInode(ctx, &latestNode{sys: n.sys, shelf: n.shelf}, fs.StableAttr{Mode: syscall.S_IFLNK}), fs.OK
}

// latestNode is the link to the newest checkpoint.
type latestNode struct {
	fs.Inode
	sys   *system
	shelf *shelf
}

var (
	_ fs.NodeReadlinker = (*latestNode)(nil)
	_ fs.NodeGetattrer  = (*latestNode)(nil)
)

func (n *latestNode) target(ctx context.Context) (string, syscall.Errno) {
	to, ok, err := n.shelf.newest(ctx)
	if err != nil {
		return "", n.sys.failed(n.shelf.domain, err)
	}
	if !ok {
		return "", syscall.ENOENT
	}
	return to, fs.OK
}

func (n *latestNode) Readlink(ctx context.Context) ([]byte, syscall.Errno) {
	ctx, end := n.sys.patient(ctx)
	defer end()
	to, errno := n.target(ctx)
	return []byte(to), errno
}

func (n *latestNode) Getattr(ctx context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	ctx, end := n.sys.patient(ctx)
	defer end()
	to, errno := n.target(ctx)
	n.sys.link(&out.Attr, to)
	return errno
}

// checkpointNode is a checkpoint: what is in it never changes.
type checkpointNode struct {
	fs.Inode
	sys    *system
	domain string
	entry  entry
}

var (
	_ fs.NodeReaddirer = (*checkpointNode)(nil)
	_ fs.NodeLookuper  = (*checkpointNode)(nil)
	_ fs.NodeGetattrer = (*checkpointNode)(nil)
)

func (n *checkpointNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.sys.folder(&out.Attr, n.entry.created)
	return fs.OK
}

func (n *checkpointNode) Readdir(context.Context) (fs.DirStream, syscall.Errno) {
	var list []fuse.DirEntry
	for _, d := range n.entry.disks {
		list = append(list, fuse.DirEntry{Name: d.name + suffix, Mode: syscall.S_IFREG})
	}
	return fs.NewListDirStream(list), fs.OK
}

func (n *checkpointNode) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	ctx, end := n.sys.patient(ctx)
	defer end()
	disk, ok := diskOf(name)
	if !ok {
		return nil, syscall.ENOENT
	}
	d, ok := n.entry.disk(disk)
	if !ok {
		return nil, syscall.ENOENT
	}
	n.sys.file(&out.Attr, d.size, n.entry.created)
	if child := n.GetChild(name); child != nil {
		return child, fs.OK
	}
	return n.NewInode(ctx, &fileNode{sys: n.sys, domain: n.domain, entry: n.entry, disk: d}, fs.StableAttr{Mode: syscall.S_IFREG}), fs.OK
}
