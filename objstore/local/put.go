// SPDX-License-Identifier: Apache-2.0

package local

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/objstore"
)

const (
	// copyBuffer is how much is read from a body at a time, in bytes.
	copyBuffer = 1 << 20
	// dropCacheFrom is the size in bytes from which on an object that was
	// written does not stay in the page cache.
	dropCacheFrom = 4 << 20
	// lockWait bounds the wait for who replaces or removes another object of the
	// same folder, which takes a moment.
	lockWait = 30 * time.Second
)

// Put implements Store.
func (l *Store) Put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	if err := errors.Join(objstore.CheckKey(key), o.CheckNotRetained()); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := l.put(ctx, key, body, o); err != nil {
		return fmt.Errorf("store %s: %w", key, explain(err))
	}
	return nil
}

func (l *Store) put(ctx context.Context, key string, body objstore.Body, o objstore.PutOptions) error {
	if o.Mode == objstore.Create {
		// Saves the writing; the link below is what decides.
		switch _, err := l.stat(key); {
		case err == nil:
			return l.exists(key)
		case !errors.Is(err, objstore.ErrNotFound):
			return err
		}
	}
	temp, err := l.newTemp()
	if err != nil {
		return err
	}
	defer temp.discard()
	if err := l.fill(ctx, temp.file, body); err != nil {
		return err
	}
	folder, name := splitKey(key)
	dir, err := l.makeFolder(folder)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }() // only for reading
	if err := ctx.Err(); err != nil {
		return err
	}
	path := filepath.Join(l.dir, key)
	if o.Mode == objstore.Replace {
		err = l.replace(ctx, key, o.Old, dir, func() error { return temp.renameTo(dir, name, path) })
	} else {
		err = temp.linkTo(dir, name, path)
	}
	if err != nil && !errors.Is(err, objstore.ErrExists) {
		return err
	}
	if serr := l.folders.Sync(dir); serr != nil {
		return serr
	}
	return err
}

// replace does what takes an object out of its place, or puts another one there,
// while nobody else does so in the folder dir. With old, unless it is nil, only
// where these bytes stand.
func (l *Store) replace(ctx context.Context, key string, old []byte, dir *os.File, do func() error) error {
	err := sys.Lock(ctx, dir, lockWait) // until dir is closed
	switch {
	case errors.Is(err, sys.ErrNoLocks) && old != nil:
		return &objstore.UnsupportedError{Ability: "compare and replace an object in one step", Err: err}
	case err != nil && !errors.Is(err, sys.ErrNoLocks):
		return err
	}
	if old != nil {
		if err := objstore.CheckStands(ctx, l, key, old); err != nil {
			return err
		}
	}
	return do()
}

// exists returns ErrExists after it has made the object durable: who put it
// there may have been killed before, and the caller may go on to refer to it.
func (l *Store) exists(key string) error {
	folder, _ := splitKey(key)
	dir, err := l.makeFolder(folder)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }() // only for reading
	if err := l.folders.Sync(dir); err != nil {
		return err
	}
	return objstore.ErrExists
}

// fill writes body to f and makes it durable.
func (l *Store) fill(ctx context.Context, f *os.File, body objstore.Body) error {
	buf := l.buffers.Get().(*[]byte)
	defer l.buffers.Put(buf)
	size := body.Size()
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := (*buf)[:min(int64(len(*buf)), size-off)]
		n, err := body.ReadAt(p, off)
		if n < len(p) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("read what is to be stored: %w", err)
		}
		if _, err := f.Write(p); err != nil {
			return err
		}
		off += int64(n)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := l.sync(f); err != nil {
		return err
	}
	if size >= dropCacheFrom {
		// Advice: a file system that does not take it is no failure.
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	return nil
}

// makeFolder opens the folder dir of the repository and makes it if need be.
// It is durable on return, whoever made it.
func (l *Store) makeFolder(dir string) (*os.File, error) {
	at, err := l.openFolder("")
	if err != nil || dir == "" {
		return at, err
	}
	rel := ""
	for part := range strings.SplitSeq(dir, "/") {
		rel = path.Join(rel, part)
		next, err := l.makeIn(at, part, rel)
		_ = at.Close() // only for reading
		if err != nil {
			return nil, err
		}
		at = next
	}
	return at, nil
}

// makeIn opens the folder part in the folder at, after making it if need be.
// rel is its path in the repository.
func (l *Store) makeIn(at *os.File, part, rel string) (*os.File, error) {
	next, err := sys.OpenAt(at, part, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if notThere(err) {
		next, err = l.makeDir(at, part)
	}
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		err = notFolder(at, part, err)
	}
	if err != nil {
		return nil, err
	}
	if err := l.syncOnce(at, rel); err != nil {
		_ = next.Close()
		return nil, err
	}
	return next, nil
}

// makeDir makes the folder part in the folder at, unless it is there, and opens it.
func (l *Store) makeDir(at *os.File, part string) (*os.File, error) {
	made := sys.MkdirAt(at, part, dirMode)
	if made != nil && !errors.Is(made, unix.EEXIST) {
		return nil, made
	}
	dir, err := sys.OpenAt(at, part, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil || made != nil {
		return dir, err
	}
	if err := l.share(dir, groupDirMode); err != nil {
		_ = dir.Close()
		return nil, err
	}
	return dir, nil
}

// share sets the mode of what was made for a group that shares the repository.
func (l *Store) share(f *os.File, mode uint32) error {
	if !l.group {
		return nil
	}
	if err := sys.Control(f, func(fd int) error { return unix.Fchmod(fd, mode) }); err != nil {
		return &fs.PathError{Op: "chmod", Path: f.Name(), Err: err}
	}
	if mode == groupDirMode {
		return l.folders.Sync(f) // files are synced when they are complete
	}
	return nil
}

// syncOnce makes the folder rel durable by syncing the folder at that holds
// it: also when it was there already, since who made it may not have got to it.
func (l *Store) syncOnce(at *os.File, rel string) error {
	l.mu.Lock()
	_, known := l.synced[rel]
	l.mu.Unlock()
	if known {
		return nil
	}
	if err := l.folders.Sync(at); err != nil {
		return err
	}
	l.mu.Lock()
	l.synced[rel] = struct{}{}
	l.mu.Unlock()
	return nil
}

// temp is a file in tmp/, locked by us.
type temp struct {
	dir  *os.File
	file *os.File
	name string // in dir; "" when it has been renamed
	calls
}

// calls are those of the system that give a file a name which nothing has, and make
// its content durable.
type calls struct {
	link   func(olddir int, old string, newdir int, new string, flags int) error
	rename func(olddir int, old string, newdir int, new string, flags uint) error // with flags
	sync   func(f *os.File) error
}

// system are the system's own, but for sync, unless that is nil.
func system(sync func(f *os.File) error) calls {
	if sync == nil {
		sync = (*os.File).Sync
	}
	return calls{unix.Linkat, unix.Renameat2, sync}
}

// newTemp makes an empty temporary file.
func (l *Store) newTemp() (*temp, error) {
	dir, err := l.tempFolder()
	if err != nil {
		return nil, err
	}
	f, name, err := sys.CreateLocked(dir, randomName, fileMode)
	if err != nil {
		return nil, err
	}
	t := &temp{dir: dir, file: f, name: name, calls: l.calls}
	if err := l.share(f, groupFileMode); err != nil {
		t.discard()
		return nil, err
	}
	return t, nil
}

func randomName() string {
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails
	return hex.EncodeToString(random[:])
}

// discard closes the file and removes its name in tmp/, if it still has it.
// What can't be removed does no harm, and is swept later.
func (t *temp) discard() {
	if t.name != "" {
		_ = sys.UnlinkAt(t.dir, t.name)
	}
	_ = t.file.Close() // it is synced, or not wanted
}

func (t *temp) renameTo(dir *os.File, name, path string) error {
	if st, err := sys.StatAt(dir, name); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		return &fs.PathError{Op: "replace", Path: path, Err: errors.New("is not a file")}
	}
	err := sys.Restart(func() error { return unix.Renameat(int(t.dir.Fd()), t.name, int(dir.Fd()), name) })
	if err != nil {
		return &os.LinkError{Op: "rename", Old: t.file.Name(), New: path, Err: err}
	}
	t.name = ""
	return nil
}

// linkTo gives the file its final name, if nothing has that name.
func (t *temp) linkTo(dir *os.File, name, path string) error {
	err := sys.Restart(func() error { return t.link(int(t.dir.Fd()), t.name, int(dir.Fd()), name, 0) })
	switch {
	case errors.Is(err, unix.EEXIST):
		// A network file system may have done it and lost the answer, and then
		// have asked again.
		return t.isAt(dir, name, path)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EMLINK):
		// A file system without hard links.
		rerr := sys.Restart(func() error {
			return t.rename(int(t.dir.Fd()), t.name, int(dir.Fd()), name, unix.RENAME_NOREPLACE)
		})
		switch {
		case rerr == nil:
			t.name = ""
			return nil
		case errors.Is(rerr, unix.EEXIST):
			return objstore.ErrExists
		case errors.Is(rerr, unix.EINVAL), errors.Is(rerr, unix.ENOSYS), errors.Is(rerr, unix.EOPNOTSUPP):
			return &objstore.NoConditionsError{What: fmt.Sprintf("the file system of %s has neither hard links (%v) nor RENAME_NOREPLACE (%v)", t.dir.Name(), err, rerr)}
		}
	}
	if err != nil {
		return &os.LinkError{Op: "link", Old: t.file.Name(), New: path, Err: err}
	}
	return nil
}

// isAt returns nil when name is this very file, and else ErrExists; where it is no file at
// all nothing can be stored there.
func (t *temp) isAt(dir *os.File, name, path string) error {
	there, err := sys.StatAt(dir, name)
	if err != nil {
		return err
	}
	if there.Mode&unix.S_IFMT == unix.S_IFDIR {
		return &fs.PathError{Op: "create", Path: path, Err: errors.New("a folder stands where a file is needed")}
	}
	own, err := sys.Stat(t.file)
	if err != nil {
		return err
	}
	if sys.IdentityOf(&there) != sys.IdentityOf(&own) {
		return objstore.ErrExists
	}
	return nil
}

// tempFolder opens tmp/. The first time it makes and sweeps it.
func (l *Store) tempFolder() (*os.File, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.temps != nil {
		return l.temps, nil
	}
	dir, err := l.makeDir(l.root, objstore.TempFolder)
	if err != nil {
		return nil, err
	}
	// All that is there is ours, and has been given up if nobody has it locked.
	if err := sys.Sweep(dir, func(_ string, folder bool) bool { return !folder }); err != nil {
		_ = dir.Close()
		return nil, err
	}
	l.temps = dir
	return dir, nil
}
