// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/crypt"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/view"
)

// Options are how a repository is mounted.
type Options struct {
	Name       string // of the file system, as mount(8) shows it
	AllowOther bool   // other users may read it, too
	Reader     view.Options
	Note       func(msg string) // is told what a person should know
	// Failed is told of each request that could not be served. path is below the mount.
	Failed func(path string, err error)

	always bool // the repository is asked each time, and the kernel believes nothing: of tests
}

// maxRead is how many bytes the kernel may ask for at once.
const maxRead = 1 << 20

// known is how long the kernel may believe a name, or that there is none.
const known = time.Second

// Mounted is a repository that is mounted.
type Mounted struct {
	dir    string
	server *fuse.Server
	reader *view.Reader
	guard  *guard
}

// Mount mounts a repository at dir, a folder that is there, and serves it from then on, as
// long as ctx lasts at most. It needs fusermount3, and no rights but to write to dir.
func Mount(ctx context.Context, repo *chain.Repository, dir string, o Options) (*Mounted, error) {
	dir, err := checkFolder(dir)
	if err != nil {
		return nil, err
	}
	helper, err := findHelper()
	if err != nil {
		return nil, err
	}
	shared := &system{ctx: ctx, repo: repo, reader: view.NewReader(ctx, repo, o.Reader), options: o, fresh: freshFor, begun: time.Now(), shelves: make(map[string]*shelf)}
	timeout := known
	if o.always {
		timeout, shared.fresh = 0, 0
	}
	server, err := fs.Mount(dir, &rootNode{sys: shared}, &fs.Options{
		EntryTimeout: &timeout, AttrTimeout: &timeout, NegativeTimeout: &timeout,
		MountOptions: fuse.MountOptions{
			FsName: o.Name, Name: "imgbackup", Options: []string{"ro", "nosuid", "nodev", "noexec"},
			AllowOther: o.AllowOther, MaxWrite: maxRead, MaxReadAhead: maxRead, DisableXAttrs: true,
			DisableSplice: true, // it is for bytes that come out of a file
			Logger:        log.New(io.Discard, "", 0),
		},
	})
	if err != nil {
		shared.reader.Close()
		return nil, fmt.Errorf("mount at %s: %w", dir, err)
	}
	m := &Mounted{dir: dir, server: server, reader: shared.reader}
	device, err := deviceOf(dir)
	if err == nil {
		readAhead(device)
		m.guard, err = startGuard(helper, dir, device)
	}
	if err != nil {
		return nil, errors.Join(err, server.Unmount())
	}
	return m, nil
}

// deviceOf is the device of what is mounted at dir, as /proc and /sys have it.
func deviceOf(dir string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	return fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)), nil
}

// readAhead lets the kernel read on by as much as it may ask for at once; it asks for an eighth of
// that by itself, and only root may change it.
func readAhead(device string) {
	path := "/sys/class/bdi/" + device + "/read_ahead_kb"
	_ = os.WriteFile(path, strconv.AppendInt(nil, maxRead>>10, 10), 0) // it only takes longer without
}

// checkFolder returns the folder's path from the root on.
func checkFolder(dir string) (string, error) {
	fi, err := os.Stat(dir)
	switch {
	case errors.Is(err, syscall.ENOTCONN):
		return "", fmt.Errorf("%s: what was mounted there has ended: fusermount3 -u %s", dir, dir)
	case errors.Is(err, os.ErrNotExist):
		return "", fmt.Errorf("%s: there is no such folder", dir)
	case err != nil:
		return "", err
	case !fi.IsDir():
		return "", fmt.Errorf("%s: it is no folder, on which something could be mounted", dir)
	}
	if err := checkEmpty(dir); err != nil {
		return "", err
	}
	return filepath.Abs(dir)
}

// checkEmpty refuses a folder in which there is something, which would be hidden, and which may be another
// mount of ours: of two at one place nobody can tell which one an unmount is for.
func checkEmpty(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	kind, err := sys.SystemKind(dir)
	if err != nil {
		return err
	}
	names, err := f.Readdirnames(1)
	switch {
	case kind == unix.FUSE_SUPER_MAGIC && len(names) > 0:
		return fmt.Errorf("%s: something is mounted there already: fusermount3 -u %s, or choose another folder", dir, dir)
	case len(names) > 0:
		return fmt.Errorf("%s: it is not empty, and what is in it would be hidden: choose an empty folder", dir)
	case err != nil && !errors.Is(err, io.EOF):
		return err
	}
	return nil
}

// Wait serves until somebody has unmounted it, or ctx ends, when it unmounts: a program that
// still has a file open there gets errors from then on.
func (m *Mounted) Wait(ctx context.Context) error {
	ended := make(chan struct{})
	go func() { m.server.Wait(); close(ended) }()
	select {
	case <-ended:
		err := m.guard.dismiss()
		m.reader.Close()
		return err
	case <-ctx.Done():
		return m.Unmount()
	}
}

// Unmount unmounts it.
func (m *Mounted) Unmount() error { return m.guard.unmount() }

// system is what all nodes share.
type system struct {
	ctx     context.Context // while it is served
	repo    *chain.Repository
	reader  *view.Reader
	options Options
	fresh   time.Duration
	begun   time.Time

	mu      sync.Mutex
	shelves map[string]*shelf // by domain; of those that were looked at, at most maxShelves
}

// maxShelves is how many names' checkpoints are kept in mind at once.
const maxShelves = 4096

func (s *system) shelf(domain string) *shelf {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.shelves) >= maxShelves { // names that are none, which anybody may look up: the repository is asked again
		clear(s.shelves)
	}
	if s.shelves[domain] == nil {
		s.shelves[domain] = &shelf{repo: s.repo, domain: domain, fresh: s.fresh, note: s.options.Note}
	}
	return s.shelves[domain]
}

// interruptGrace is how long a request goes on when its caller was sent a signal.
const interruptGrace = 5 * time.Second

// patient is the context of a request that goes on for a short time when its caller was sent a
// signal: few programs expect that a file is interrupted, and QEMU's threads send each other some.
func (s *system) patient(ctx context.Context) (context.Context, context.CancelFunc) {
	on, cancel := context.WithCancel(context.WithoutCancel(ctx))
	late := context.AfterFunc(ctx, func() { time.AfterFunc(interruptGrace, cancel) })
	over := context.AfterFunc(s.ctx, cancel)
	return on, func() {
		late()
		over()
		cancel()
	}
}

// failed tells of an error, and returns what the program is told that asked.
func (s *system) failed(path string, err error) syscall.Errno {
	if errors.Is(err, context.Canceled) {
		if s.ctx.Err() != nil { // it all ends; who is told of an interrupt asks again
			return syscall.ENOTCONN
		}
		return sys.Interrupted // whoever asked has gone
	}
	s.options.Failed(path, err)
	var key *crypt.KeyError
	if errors.As(err, &key) {
		return syscall.EACCES
	}
	return syscall.EIO
}

func (s *system) folder(a *fuse.Attr, at time.Time) { s.attr(a, syscall.S_IFDIR|0o555, at) }

func (s *system) link(a *fuse.Attr, to string) {
	s.attr(a, syscall.S_IFLNK|0o777, s.begun)
	a.Size = uint64(len(to))
}

func (s *system) file(a *fuse.Attr, size int64, at time.Time) {
	s.attr(a, syscall.S_IFREG|0o444, at)
	a.Size = uint64(size)
	// Programs look for holes only where there are fewer blocks than bytes.
	a.Blocks = max(uint64(size)/512, 2) - 1
}

func (s *system) attr(a *fuse.Attr, mode uint32, at time.Time) {
	a.Mode, a.Nlink, a.Blksize = mode, 1, 64<<10
	a.SetTimes(&at, &at, &at)
	if !s.options.AllowOther {
		a.Mode &^= 0o077
	}
	a.Uid, a.Gid = uint32(os.Getuid()), uint32(os.Getgid())
}
