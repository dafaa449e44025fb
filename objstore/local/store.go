// SPDX-License-Identifier: Apache-2.0

// Package local keeps the objects of a repository in a folder. See [Store].
package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/objstore"
)

// Modes of what a local store makes: backups hold secrets. In one that a group shares
// they are set whatever the umask is, and folders hand their group down.
const (
	fileMode      = 0o600
	dirMode       = 0o700
	groupFileMode = 0o660
	groupDirMode  = 0o2770
)

// Store keeps objects as files in a folder: an object's path below the folder
// is its key.
//
// A new object is written to a file in tmp/ that is locked (flock) as long as
// its writer lives, synced, and then linked (Create) or renamed (Replace) to
// its name; then its folder is synced. What a killed writer left in tmp/ is
// removed by the first Put of a later one. Symbolic links inside of the folder
// are not followed: an operation that meets one fails. Nothing is written, not
// even for locking, by the methods that only read.
type Store struct {
	dir  string   // absolute; for messages
	root *os.File // every path is resolved from here

	folders *sys.FolderSyncer
	group   bool // the folder's group shares it

	mu     sync.Mutex          // guards temps and synced
	temps  *os.File            // the folder tmp/; nil before the first Put
	synced map[string]struct{} // folders that this store knows to be durable

	calls // that tests replace

	buffers sync.Pool // *[]byte of copyBuffer bytes
}

var _ objstore.Store = (*Store)(nil)

// Options say how to open a folder.
type Options struct {
	// Note, if any, is told what a person should know about the folder.
	Note func(msg string)
	// Shared, for Create: the members of the folder's group may read and write all
	// that is in it. Later it is known by the mode of the repository's own object.
	Shared bool
	// Sync, for tests, is what makes a file or a folder durable, in place of fsync(2).
	Sync func(f *os.File) error
}

// folders tells at most once of what can't be synced.
func (o Options) folders() *sys.FolderSyncer { return &sys.FolderSyncer{Note: o.Note, Call: o.Sync} }

// Open opens the folder dir as a store, for reading and writing. Where there is
// no such folder the error is ErrNotFound.
func Open(dir string, o Options) (*Store, error) { return open(dir, o.folders()) }

func open(dir string, folders *sys.FolderSyncer) (*Store, error) {
	abs, err := sys.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open repository %s: %w", dir, err)
	}
	var fd int
	err = sys.Restart(func() (err error) {
		fd, err = unix.Open(abs, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, objstore.MarkNotFound(fmt.Errorf("no repository at %s: there is no such folder (imgbackup init makes a repository)", dir))
	case errors.Is(err, unix.ENOTDIR):
		return nil, fmt.Errorf("no repository at %s: it is not a folder", dir)
	case err != nil:
		return nil, fmt.Errorf("open repository: %w", explain(&fs.PathError{Op: "open", Path: dir, Err: err}))
	}
	l := &Store{
		dir:     abs,
		root:    os.NewFile(uintptr(fd), abs),
		folders: folders,
		calls:   system(folders.Call),
		synced:  make(map[string]struct{}),
		buffers: sync.Pool{New: func() any { b := make([]byte, copyBuffer); return &b }},
	}
	if st, err := sys.StatAt(l.root, objstore.Marker); err == nil {
		l.group = st.Mode&unix.S_IWGRP != 0
	}
	return l, nil
}

// Create makes the folder dir, its missing parents too, durably, and opens it. A
// folder that is there already has to be empty, or a repository.
func Create(dir string, o Options) (*Store, error) {
	l, err := create(dir, o.folders())
	if err != nil || !o.Shared {
		return l, err
	}
	if _, err := l.stat(objstore.Marker); !errors.Is(err, objstore.ErrNotFound) {
		return l, nil // it is shared or not since it was made
	}
	l.group = true
	if err := l.share(l.root, groupDirMode); err != nil {
		return nil, errors.Join(fmt.Errorf("create repository: share the folder with its group: %w", explain(err)), l.Close())
	}
	return l, nil
}

func create(dir string, folders *sys.FolderSyncer) (*Store, error) {
	abs, err := sys.Locate(dir)
	if errors.Is(err, fs.ErrNotExist) { // its parents are made, too
		abs, err = sys.Abs(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("create repository %s: %w", dir, err)
	}
	if err := checkNotWithin(abs); err != nil {
		return nil, fmt.Errorf("create repository: %w", err)
	}
	if err := mkdirAllSynced(folders, abs); err != nil {
		return nil, fmt.Errorf("create repository: %w", explain(err))
	}
	entries, err := os.ReadDir(abs)
	if err != nil {
		return nil, fmt.Errorf("create repository: %w", explain(err))
	}
	foreign := ""
	for _, e := range entries {
		switch e.Name() {
		case objstore.Marker:
			return open(dir, folders)
		case objstore.TempFolder, objstore.LostFound:
		default:
			// Folders without files are what is left of one that was not made in the end.
			if bare, err := hasNoFiles(filepath.Join(abs, e.Name())); err != nil {
				return nil, fmt.Errorf("create repository: %w", explain(err))
			} else if !bare || e.Name() != objstore.KeysFolder {
				foreign = e.Name()
			}
		}
	}
	if foreign != "" {
		return nil, fmt.Errorf("create repository: %s is not empty (it holds %q) and is not a repository: choose an empty or a new folder", dir, foreign)
	}
	return open(dir, folders)
}

// hasNoFiles reports whether there is nothing but folders.
func hasNoFiles(path string) (bool, error) {
	bare := true
	err := filepath.WalkDir(path, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			bare = false
			return fs.SkipAll
		}
		return err
	})
	return bare, err
}

// mkdirAllSynced makes path and its missing parents, each durable before the
// next one.
func mkdirAllSynced(folders *sys.FolderSyncer, path string) error {
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return nil
	case err == nil:
		return &fs.PathError{Op: "mkdir", Path: path, Err: unix.ENOTDIR}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	parent := filepath.Dir(path)
	if parent == path {
		return err
	}
	if err := mkdirAllSynced(folders, parent); err != nil {
		return err
	}
	if err := os.Mkdir(path, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return folders.SyncPath(parent)
}

// Dir returns the absolute path of the store's folder.
func (l *Store) Dir() string { return l.dir }

// Close releases the store's file descriptors. Readers that are open stay so.
func (l *Store) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.root.Close()
	if l.temps != nil {
		err = errors.Join(err, l.temps.Close())
	}
	return err
}

// Get implements Store.
func (l *Store) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := errors.Join(objstore.CheckKey(key), objstore.CheckRange(key, offset, length)); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, size, err := l.open(key)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", key, explain(err))
	}
	return objstore.NewRange(ctx, f, size, offset, length, f), nil
}

// open opens the file of an object.
func (l *Store) open(key string) (*os.File, int64, error) {
	dir, name, err := l.folder(key)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = dir.Close() }() // only read
	path := filepath.Join(l.dir, key)
	// Not blocking: a pipe in the place of an object would wait for a writer.
	f, err := sys.OpenAt(dir, name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		err = &fs.PathError{Op: "open", Path: path, Err: errSymlink}
	}
	if err != nil {
		return nil, 0, l.absent(err)
	}
	info, err := f.Stat()
	if err == nil {
		err = l.regular(path, info.Sys().(*syscall.Stat_t).Mode)
	}
	if err != nil {
		_ = f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// regular says why a file of this mode is no object. Folders are ErrNotFound:
// below them there may be objects, but under their own name there is none.
func (l *Store) regular(path string, mode uint32) error {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return nil
	case unix.S_IFDIR:
		return objstore.MarkNotFound(&fs.PathError{Op: "open", Path: path, Err: unix.EISDIR})
	case unix.S_IFLNK:
		return &fs.PathError{Op: "open", Path: path, Err: errSymlink}
	}
	return &fs.PathError{Op: "open", Path: path, Err: errSpecial}
}

var errSpecial = errors.New("is neither a file nor a folder; nothing else belongs into a repository")

// Stat implements Store.
func (l *Store) Stat(ctx context.Context, key string) (objstore.Info, error) {
	if err := objstore.CheckKey(key); err != nil {
		return objstore.Info{}, err
	}
	if err := ctx.Err(); err != nil {
		return objstore.Info{}, err
	}
	size, err := l.stat(key)
	if err != nil {
		return objstore.Info{}, fmt.Errorf("look for %s: %w", key, explain(err))
	}
	return objstore.Info{Key: key, Size: size}, nil
}

func (l *Store) stat(key string) (int64, error) {
	dir, name, err := l.folder(key)
	if err != nil {
		return 0, err
	}
	defer func() { _ = dir.Close() }() // only read
	path := filepath.Join(l.dir, key)
	st, err := sys.StatAt(dir, name)
	if err != nil {
		return 0, l.absent(err)
	}
	return st.Size, l.regular(path, st.Mode)
}

// Delete implements Store. It is durable on return; folders stay.
func (l *Store) Delete(ctx context.Context, key string) error {
	if err := objstore.CheckKey(key); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	err := l.remove(ctx, key)
	if errors.Is(err, objstore.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete %s: %w", key, explain(err))
	}
	return nil
}

func (l *Store) remove(ctx context.Context, key string) (err error) {
	dir, _, err := l.folder(key)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	if err := l.unlink(ctx, key, dir); err != nil {
		return err
	}
	return l.folders.Sync(dir)
}
