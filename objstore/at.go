// SPDX-License-Identifier: Apache-2.0

package objstore

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The few system calls that the local store is made of. They work relative to
// an open folder and never follow a symbolic link, so that nothing that lies
// in a repository can lead out of it.

// restart calls f again as long as a signal interrupts it.
func restart(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// openAt opens name in the folder dir. path is what errors and the file call it.
func openAt(dir *os.File, name, path string, flags int, perm uint32) (*os.File, error) {
	var fd int
	err := restart(func() (err error) {
		fd, err = unix.Openat(int(dir.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, perm)
		return err
	})
	runtime.KeepAlive(dir)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// statAt describes name in the folder dir; a symbolic link as the link it is.
func statAt(dir *os.File, name, path string) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := restart(func() error {
		return unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	})
	runtime.KeepAlive(dir)
	if err != nil {
		return st, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return st, nil
}

func unlinkAt(dir *os.File, name, path string) error {
	err := restart(func() error { return unix.Unlinkat(int(dir.Fd()), name, 0) })
	runtime.KeepAlive(dir)
	if err != nil {
		return &fs.PathError{Op: "remove", Path: path, Err: err}
	}
	return nil
}

// tryFlock takes an exclusive lock on f. held is false when another has it.
// Where the file system has no such locks, supported is false.
func tryFlock(f *os.File) (held, supported bool, err error) {
	err = restart(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	switch {
	case err == nil:
		return true, true, nil
	case errors.Is(err, unix.EWOULDBLOCK):
		return false, true, nil
	case errors.Is(err, unix.ENOLCK), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
		return false, false, nil
	}
	return false, true, &fs.PathError{Op: "lock", Path: f.Name(), Err: err}
}

// notThere says whether err is the file system's word that a name does not
// exist, as opposed to any failure to find out.
func notThere(err error) bool { return errors.Is(err, unix.ENOENT) }

// explain adds what a person can do to errors of full and read-only file systems.
func explain(err error) error {
	hint := ""
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC):
		hint = "the file system that holds the repository is full: make room and try again"
	case errors.Is(err, unix.EDQUOT):
		hint = "the quota on the file system that holds the repository is used up"
	case errors.Is(err, unix.EROFS):
		hint = "the file system that holds the repository is read-only"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		hint = "this user may not do that in the repository"
	case errors.Is(err, unix.EXDEV):
		hint = "all of a repository has to lie on one file system"
	default:
		return err
	}
	return &hinted{err: err, hint: hint}
}

type hinted struct {
	err  error
	hint string
}

func (h *hinted) Error() string { return h.err.Error() + " (" + h.hint + ")" }
func (h *hinted) Unwrap() error { return h.err }

// folder opens the folder that holds the object key, and returns the object's
// own name in it. An absent folder is ErrNotFound. The caller closes the folder.
func (l *Local) folder(key string) (*os.File, string, error) {
	dir, name := splitKey(key)
	f, err := l.openFolder(dir)
	return f, name, err
}

func splitKey(key string) (dir, name string) {
	if i := strings.LastIndexByte(key, '/'); i >= 0 {
		return key[:i], key[i+1:]
	}
	return "", key
}

// openFolder opens the folder dir of the repository, "" being its root.
func (l *Local) openFolder(dir string) (*os.File, error) {
	at, err := openAt(l.root, ".", l.dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, l.absent(err)
	}
	if dir == "" {
		return at, nil
	}
	path := l.dir
	for part := range strings.SplitSeq(dir, "/") {
		path = filepath.Join(path, part)
		next, err := openAt(at, part, path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			err = notFolder(at, part, path, err)
		}
		_ = at.Close() // opened for reading only
		if err != nil {
			return nil, l.absent(err)
		}
		at = next
	}
	return at, nil
}

// notFolder tells a file where a folder was looked for, below which there can
// be no object, from a symbolic link, behind which there might be one.
func notFolder(at *os.File, part, path string, err error) error {
	st, serr := statAt(at, part, path)
	if serr != nil {
		return serr
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		return &fs.PathError{Op: "open", Path: path, Err: fileInPlaceOfFolder{}}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return &fs.PathError{Op: "open", Path: path, Err: errSymlink}
	}
	return err
}

// fileInPlaceOfFolder is ENOENT for readers, and says why for writers.
type fileInPlaceOfFolder struct{}

func (fileInPlaceOfFolder) Error() string        { return "a file stands where a folder is needed" }
func (fileInPlaceOfFolder) Is(target error) bool { return target == syscall.ENOENT }

var errSymlink = errors.New("is a symbolic link, which is not followed inside a repository")

// absent turns the file system's "no such file" into ErrNotFound, unless the
// repository's folder itself has been removed.
func (l *Local) absent(err error) error {
	if !notThere(err) {
		return err
	}
	var st unix.Stat_t
	if serr := restart(func() error { return unix.Fstat(int(l.root.Fd()), &st) }); serr != nil {
		return &fs.PathError{Op: "stat", Path: l.dir, Err: serr}
	}
	if st.Nlink == 0 {
		return &fs.PathError{Op: "open", Path: l.dir, Err: errRemoved}
	}
	return &notFoundError{err: err}
}

var errRemoved = errors.New("the repository's folder has been removed while it was in use")

type notFoundError struct{ err error }

func (e *notFoundError) Error() string { return e.err.Error() }
func (e *notFoundError) Unwrap() []error {
	return []error{ErrNotFound, e.err}
}
