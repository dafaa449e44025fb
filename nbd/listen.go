// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// ErrSocketInUse says that a living server listens on a socket.
var ErrSocketInUse = errors.New("a server listens on this socket already")

// unixListener removes its socket when it is closed, if it is still its own.
type unixListener struct {
	*net.UnixListener
	path     string
	dev, ino uint64
}

// Addr is the path that was listened on, not the detour to it.
func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

func (l *unixListener) Close() error {
	var st unix.Stat_t
	if unix.Lstat(l.path, &st) == nil && st.Dev == l.dev && st.Ino == l.ino {
		_ = unix.Unlink(l.path) // a socket that is left is replaced by the next server
	}
	return l.UnixListener.Close()
}

// ListenUnix listens on a socket that only its owner may connect to, from the
// moment it is there (mode 0600). A socket that a dead server has left is replaced;
// one of a living server is [ErrSocketInUse]; anything else at the path is refused.
// The socket is removed when the listener is closed. ctx ends the waiting for another
// server that just starts, and not the listener.
func ListenUnix(ctx context.Context, path string) (net.Listener, error) {
	l, err := listenUnix(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

func listenUnix(ctx context.Context, path string) (_ net.Listener, err error) {
	dir, err := os.OpenFile(filepath.Dir(path), os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	// Of two servers that start at the same time, the second sees the first.
	if err := lockFolder(ctx, dir); err != nil {
		return nil, fmt.Errorf("lock its folder: %w", err)
	}
	if err := checkStale(path); err != nil {
		return nil, err
	}
	// The socket is made where nobody else can reach it, and appears under its name
	// with its final mode. The detour over /proc keeps its path short, too.
	_ = sys.Sweep(dir, func(name string, folder bool) bool { return folder && strings.HasPrefix(name, privatePrefix) })
	in, private, err := sys.MkdirLocked(dir, privateName, 0o700)
	if err != nil {
		return nil, err
	}
	defer func() {
		_ = sys.RemoveLocked(dir, private)
		_ = in.Close()
	}()
	first := filepath.Join(in.Name(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/s", in.Fd()), Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	var st unix.Stat_t
	err = errors.Join(os.Chmod(first, 0o600), unix.Lstat(first, &st))
	if err == nil {
		err = os.Rename(first, path)
	}
	if err != nil {
		_ = l.Close()
		return nil, err
	}
	return &unixListener{UnixListener: l, path: path, dev: st.Dev, ino: st.Ino}, nil
}

// Private folders are called .imgbackup-socket-<16 hex digits>.
const privatePrefix = ".imgbackup-socket-"

func privateName() string {
	var r [8]byte
	_, _ = rand.Read(r[:]) // never fails
	return privatePrefix + hex.EncodeToString(r[:])
}

// lockWait bounds how long whoever has locked the folder is waited for: a server that
// starts needs no longer than a moment.
const lockWait = 5 * time.Second

// lockFolder locks a folder, where its file system has locks.
func lockFolder(ctx context.Context, dir *os.File) error {
	err := sys.Lock(ctx, dir, lockWait)
	switch {
	case errors.Is(err, sys.ErrNoLocks):
		return nil
	case errors.Is(err, sys.ErrLocked):
		return fmt.Errorf("another program keeps the folder %s locked (flock); name a socket in another: %w", dir.Name(), err)
	}
	return err
}

// checkStale returns nil when there is nothing at path, or a socket on which
// nobody listens.
func checkStale(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.Mode()&fs.ModeSocket == 0 {
		return errors.New("there is a file of this name, and it is no socket")
	}
	at, err := shortPath(path)
	if err != nil {
		return err
	}
	defer at.close()
	c, err := net.Dial("unix", at.name)
	switch {
	case err == nil:
		_ = c.Close()
		return ErrSocketInUse
	case errors.Is(err, unix.ECONNREFUSED):
		return nil
	case errors.Is(err, unix.EAGAIN):
		return ErrSocketInUse // its queue of clients is full
	}
	return err
}

// short is a path of a socket that fits into a socket's address.
type short struct {
	name string
	dir  *os.File
}

func (s *short) close() {
	if s.dir != nil {
		_ = s.dir.Close()
	}
}

// shortPath gives long paths a detour over /proc.
func shortPath(path string) (*short, error) {
	if len(path) < 100 {
		return &short{name: path}, nil
	}
	dir, err := os.OpenFile(filepath.Dir(path), os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	return &short{name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)), dir: dir}, nil
}

// firstInherited is the first descriptor of systemd's socket activation
// (sd_listen_fds(3)).
const firstInherited = 3

// Inherited returns the listening sockets that systemd, or a program that does as
// it does (nbdcopy and nbdinfo with [ COMMAND ]), has handed over: none if the
// environment does not say so for this process. The variables that say it are
// removed from the environment. With sockets, the process gets SIGTERM when its
// parent ends: nbdcopy that fails leaves without a word.
func Inherited() ([]net.Listener, error) {
	pid, fds := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	if pid == "" || pid != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if err := os.Unsetenv(name); err != nil {
			return nil, err
		}
	}
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGTERM), 0, 0, 0); err != nil {
		return nil, fmt.Errorf("ask for a signal when the parent ends: %w", err)
	}
	n, err := strconv.Atoi(fds)
	if err != nil || n < 1 || n > 64 {
		return nil, fmt.Errorf("LISTEN_FDS=%.20q: want a number from 1 to 64", fds)
	}
	var all []net.Listener
	for fd := firstInherited; fd < firstInherited+n; fd++ {
		unix.CloseOnExec(fd)
		f := os.NewFile(uintptr(fd), fmt.Sprintf("inherited socket %d", fd))
		l, err := net.FileListener(f)
		_ = f.Close() // the listener has its own copy
		if err != nil {
			for _, l := range all {
				_ = l.Close()
			}
			return nil, fmt.Errorf("inherited descriptor %d is no listening socket: %w", fd, err)
		}
		if u, ok := l.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(false) // it belongs to whoever made it
		}
		all = append(all, l)
	}
	return all, nil
}
