// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// Dir is the folder of all that is remembered, of any number of repositories.
type Dir struct {
	path  string
	limit int64 // bytes

	mu    sync.Mutex
	fresh int64 // bytes written since it was last trimmed; -1: it never was by this program
}

// The modes of what is made. Maps and manifests say what guests are, and what they hold.
const (
	dirMode  = 0o700
	fileMode = 0o600
)

// tag says to programs that make backups that the folder is none of their business, as
// https://bford.info/cachedir has it.
const (
	tagName = "CACHEDIR.TAG"
	tag     = "Signature: 8a477f597d28d172789f06886806bc55\n# What imgbackup remembers of repositories. It may be removed at any time.\n"
)

// Open opens the folder at path, for at most limit bytes. It is made when something is to
// be kept. One that others may write to is refused: they could make a backup larger.
func Open(path string, limit int64) (*Dir, error) {
	abs, err := sys.Abs(path)
	if err != nil {
		return nil, err
	}
	d := &Dir{path: abs, limit: limit, fresh: -1}
	var st unix.Stat_t
	err = sys.Restart(func() error { return unix.Stat(abs, &st) })
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return d, nil
	case err != nil:
		return nil, &fs.PathError{Op: "stat", Path: path, Err: err}
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return nil, fmt.Errorf("%s is no folder", path)
	case int(st.Uid) != os.Geteuid():
		return nil, fmt.Errorf("%s belongs to another user", path)
	case st.Mode&0o022 != 0:
		return nil, fmt.Errorf("others may write into %s", path)
	}
	d.tag()
	return d, nil
}

// Path is where it is.
func (d *Dir) Path() string { return d.path }

// tag puts the tag into the folder, if it is there.
func (d *Dir) tag() {
	path := filepath.Join(d.path, tagName)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		_ = os.WriteFile(path, []byte(tag), fileMode) // it is for others
	}
}

// The folders of a repository.
const (
	objectsFolder   = "objects"   // named by their SHA-256
	manifestsFolder = "manifests" // named by that of their keys
	listingsFolder  = "listings"  // borders in listings, named by the SHA-256 of their prefix; and plainMark
	tempFolder      = "tmp"       // being written, and locked as long as their writer lives
	tablesFolder    = "chunks"    // whatever else is remembered, see Folder
)

// repository is the folder of one repository, by its id and its place: copies of a
// repository have one id.
func (d *Dir) repository(id, place string) string {
	return filepath.Join(d.path, id+"-"+placeName(place))
}

// Folder returns a folder of a repository, which need not be there, for whoever keeps
// something there by rules of his own; all of it counts as one thing that is removed
// last. Limit is how large it may become, in bytes.
func (d *Dir) Folder(id, place string) (path string, limit int64) {
	d.wrote(0)
	return filepath.Join(d.repository(id, place), tablesFolder), d.limit / 2
}

// write puts a file in its place, complete or not at all. fill writes it, and may say
// that it is not to be kept by an error.
func (d *Dir) write(repository, folder, name string, fill func(*os.File) error) error {
	temps := filepath.Join(repository, tempFolder)
	to := filepath.Join(repository, folder)
	if err := errors.Join(os.MkdirAll(temps, dirMode), os.MkdirAll(to, dirMode)); err != nil {
		return err
	}
	d.tag()
	n := &newFile{temps: temps}
	if err := n.open(); err != nil {
		return err
	}
	defer n.close()
	if err := fill(n.file); err != nil {
		return err
	}
	return n.keep(d, filepath.Join(to, name))
}

// newFile is a file on its way to its name.
type newFile struct {
	temps  string // the folder that it is made in
	folder *os.File
	file   *os.File // locked
	name   string
}

func (n *newFile) open() (err error) {
	if n.folder, err = os.Open(n.temps); err != nil {
		return err
	}
	if n.file, n.name, err = sys.CreateLocked(n.folder, tempName, fileMode); err != nil {
		_ = n.folder.Close() // only read
	}
	return err
}

// keep gives the file its name.
func (n *newFile) keep(d *Dir, path string) error {
	info, err := n.file.Stat()
	if err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(n.temps, n.name), path); err != nil {
		return err
	}
	n.name = ""
	d.wrote(info.Size())
	return nil
}

// close removes the file if it has not got its name.
func (n *newFile) close() {
	if n.name != "" {
		_ = sys.RemoveLocked(n.folder, n.name) // else whoever trims does
	}
	_ = n.file.Close() // what is in it is proven when it is read
	_ = n.folder.Close()
}
