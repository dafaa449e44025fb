// SPDX-License-Identifier: Apache-2.0

package local

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/objstore"
)

// The local store works relative to open folders and never follows a symbolic
// link, so that nothing that lies in a repository can lead out of it.

// notThere reports whether err is the file system's word that a name does not
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
	case errors.Is(err, unix.EFBIG):
		hint = "files may not be that large: a limit (ulimit -f, LimitFSIZE=), or the file system's own"
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
func (l *Store) folder(key string) (*os.File, string, error) {
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
func (l *Store) openFolder(dir string) (*os.File, error) {
	at, err := sys.OpenAt(l.root, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, l.absent(err)
	}
	if dir == "" {
		return at, nil
	}
	for part := range strings.SplitSeq(dir, "/") {
		next, err := sys.OpenAt(at, part, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			err = notFolder(at, part, err)
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
func notFolder(at *os.File, part string, err error) error {
	path := filepath.Join(at.Name(), part)
	st, serr := sys.StatAt(at, part)
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
func (l *Store) absent(err error) error {
	if !notThere(err) {
		return err
	}
	st, serr := sys.Stat(l.root)
	if serr != nil {
		return serr
	}
	if st.Nlink == 0 {
		return &fs.PathError{Op: "open", Path: l.dir, Err: errRemoved}
	}
	return objstore.MarkNotFound(err)
}

var errRemoved = errors.New("the repository's folder has been removed while it was in use")
