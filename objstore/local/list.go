// SPDX-License-Identifier: Apache-2.0

package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/objstore"
)

// List implements Store. It holds the names of one folder per level in memory.
// A symbolic link or a special file in the repository is an error, since what
// is behind it would be missing from the listing; files whose names can't be
// keys are not objects and are passed over.
func (l *Store) List(ctx context.Context, prefix string) iter.Seq2[objstore.Info, error] {
	return func(yield func(objstore.Info, error) bool) {
		err := objstore.CheckPrefix(prefix)
		if err == nil {
			dir, begin := splitKey(prefix)
			err = l.walk(ctx, dir, begin, yield)
		}
		if err != nil && !errors.Is(err, errStopped) {
			yield(objstore.Info{}, fmt.Errorf("list %q: %w", prefix, explain(err)))
		}
	}
}

// errStopped says that the consumer of a listing wants no more of it.
var errStopped = errors.New("stopped")

// walk yields the objects below the folder dir whose path in it has the prefix
// begin, which has no slash. An absent folder holds nothing.
func (l *Store) walk(ctx context.Context, dir, begin string, yield func(objstore.Info, error) bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	entries, err := l.entries(dir, begin)
	if errors.Is(err, objstore.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Key, "/") {
			if err := l.walk(ctx, strings.TrimSuffix(e.Key, "/"), "", yield); err != nil {
				return err
			}
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if !yield(e, nil) {
			return errStopped
		}
	}
	return nil
}

// entries returns what of the folder dir begins with begin, in the order of
// the keys: the key of a folder ends in a slash.
func (l *Store) entries(dir, begin string) ([]objstore.Info, error) {
	f, err := l.openFolder(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, &fs.PathError{Op: "list", Path: filepath.Join(l.dir, dir), Err: err}
	}
	entries := make([]objstore.Info, 0, len(names))
	for _, name := range names {
		if !strings.HasPrefix(name, begin) {
			continue
		}
		e := objstore.Info{Key: name}
		if dir != "" {
			e.Key = dir + "/" + name
		}
		if objstore.CheckKey(e.Key) != nil {
			continue
		}
		there, err := l.describe(f, name, &e)
		if err != nil {
			return nil, err
		}
		if there {
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, func(a, b objstore.Info) int { return strings.Compare(a.Key, b.Key) })
	return entries, nil
}

// describe fills in the size of an object, or the slash that marks a folder.
// there is false for what was removed meanwhile.
func (l *Store) describe(dir *os.File, name string, e *objstore.Info) (there bool, err error) {
	path := filepath.Join(l.dir, e.Key)
	st, err := sys.StatAt(dir, name)
	if notThere(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		e.Key += "/"
		return true, nil
	}
	e.Size, e.Stored = st.Size, time.Unix(st.Mtim.Unix())
	return true, l.regular(path, st.Mode)
}
