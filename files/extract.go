// SPDX-License-Identifier: Apache-2.0

package files

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/internal/zero"
)

// extractor makes what an archive has, in a folder. Everything is made by its last name in
// a folder that the extractor has made and holds open, so that no symbolic link is followed,
// whatever the archive says.
type extractor struct {
	ctx     context.Context
	got     *Got
	special bool
	owners  bool // they can be given

	below  string // where what the archive has goes; empty: into the folder itself
	levels []*level
	parts  []byte
	made   bool   // folders were: what is at below is ours
	left   string // a folder that was left out, with a slash at its end: so is what lies in it
}

// level is a folder in which things are made. Things come folder by folder: when the next one
// lies elsewhere, it is complete.
type level struct {
	path string // in the archive; of the first one empty
	dir  *os.File
	h    *tar.Header // what it is to be like in the end; nil: it is not ours
}

// maxLevels bounds how deep folders lie: each is open meanwhile.
const maxLevels = 512

func newExtractor(ctx context.Context, to *os.File, got *Got, special bool) *extractor {
	return &extractor{
		ctx: ctx, got: got, special: special, owners: os.Geteuid() == 0,
		levels: []*level{{dir: to}}, parts: make([]byte, 256<<10),
	}
}

// close completes folders that are not complete.
func (x *extractor) close() (err error) {
	for len(x.levels) > 1 {
		err = errors.Join(err, x.leave())
	}
	return err
}

// leave completes the folder that things were made in last.
func (x *extractor) leave() error {
	l := x.levels[len(x.levels)-1]
	x.levels = x.levels[:len(x.levels)-1]
	return errors.Join(x.likeFile(l.dir, l.h), l.dir.Close())
}

// all makes all that an archive has, below name; empty: in the folder itself.
func (x *extractor) all(r *tar.Reader, name string) error {
	x.below = name
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("the archive that the appliance makes: %w", err)
		}
		if err := x.ctx.Err(); err != nil {
			return context.Cause(x.ctx)
		}
		if err := x.one(r, h); err != nil {
			return err
		}
	}
}

// one makes one thing.
func (x *extractor) one(r io.Reader, h *tar.Header) error {
	name := path.Clean(h.Name)
	if name == "." && x.below == "" {
		return nil // the folder itself, which is the user's
	}
	at := path.Join(x.below, name)
	if !filepath.IsLocal(name) || strings.HasPrefix(h.Name, "/") {
		return x.leaveOut(h, h.Name, "its name would lead elsewhere")
	}
	if x.left != "" && strings.HasPrefix(at, x.left) {
		return x.leaveOut(h, at, "its folder was left out")
	}
	for len(x.levels) > 1 && !strings.HasPrefix(at, x.levels[len(x.levels)-1].path+"/") {
		if err := x.leave(); err != nil {
			return err
		}
	}
	if in := x.levels[len(x.levels)-1].path; path.Dir(at) != path.Clean(in) {
		return x.leaveOut(h, at, "its folder was not there")
	}
	err := x.make(r, h, at)
	if errors.Is(err, ErrExists) { // a broken file system may have two of a name
		return x.leaveOut(h, at, "there is another one of that name")
	}
	if errors.Is(err, unix.ENAMETOOLONG) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EILSEQ) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EFBIG) {
		return x.leaveOut(h, at, err.Error())
	}
	return err
}

// leaveOut notes that something can't be made.
func (x *extractor) leaveOut(h *tar.Header, at, why string) error {
	if h.Typeflag == tar.TypeDir {
		x.left = at + "/"
	}
	x.got.leaveOut(at, why)
	return nil
}

// make makes one thing in the folder that is the last level.
func (x *extractor) make(r io.Reader, h *tar.Header, at string) error {
	name := path.Base(at)
	switch h.Typeflag {
	case tar.TypeReg:
		return x.file(h, name, func(w io.Writer) error { _, err := io.Copy(w, r); return err })
	case tar.TypeDir:
		return x.folder(h, at)
	case tar.TypeSymlink:
		return x.symlink(h, name)
	case tar.TypeLink:
		return x.link(h, at)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return x.node(h, name)
	}
	return x.leaveOut(h, at, fmt.Sprintf("it is of the type %q", h.Typeflag))
}

func (x *extractor) in() *os.File { return x.levels[len(x.levels)-1].dir }

// errno is err of a call on a name; that something is there already is [ErrExists].
func errno(dir *os.File, name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("%s: %w", filepath.Join(dir.Name(), name), ErrExists)
	}
	return &os.PathError{Op: "make", Path: filepath.Join(dir.Name(), name), Err: err}
}

func (x *extractor) folder(h *tar.Header, at string) error {
	if len(x.levels) > maxLevels {
		return x.leaveOut(h, at, "folders lie too deep")
	}
	name := path.Base(at)
	if err := sys.Control(x.in(), func(fd int) error { return unix.Mkdirat(fd, name, 0o700) }); err != nil {
		return errno(x.in(), name, err)
	}
	dir, err := sys.OpenAt(x.in(), name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	x.levels = append(x.levels, &level{path: at, dir: dir, h: h})
	x.got.Folders++
	x.made = true
	return nil
}

func (x *extractor) symlink(h *tar.Header, name string) error {
	dir := x.in()
	err := sys.Control(dir, func(fd int) error { return unix.Symlinkat(h.Linkname, fd, name) })
	if err != nil {
		return errno(dir, name, err)
	}
	x.got.Links++
	err = sys.Control(dir, func(fd int) error {
		if x.owners {
			if err := unix.Fchownat(fd, name, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return err
			}
		}
		return unix.UtimesNanoAt(fd, name, times(h), unix.AT_SYMLINK_NOFOLLOW)
	})
	return errno(dir, name, err)
}

// link makes one more name of a file that was made before.
func (x *extractor) link(h *tar.Header, at string) error {
	first := path.Clean(h.Linkname)
	if !filepath.IsLocal(first) {
		return x.leaveOut(h, at, "it is the same as a file elsewhere")
	}
	from := x.levels[0].dir
	if x.below != "" { // then what is archived is a folder of ours
		if len(x.levels) == 1 {
			return x.leaveOut(h, at, "it is no folder")
		}
		from = x.levels[1].dir
	}
	dir, err := x.walk(from, path.Dir(first))
	if err != nil {
		return x.leaveOut(h, at, "the file that it is another name of was left out")
	}
	defer func() { _ = dir.Close() }() // only looked into
	name := path.Base(at)
	err = sys.Control(dir, func(old int) error {
		return sys.Control(x.in(), func(fd int) error { return unix.Linkat(old, path.Base(first), fd, name, 0) })
	})
	if errors.Is(err, unix.ENOENT) {
		return x.leaveOut(h, at, "the file that it is another name of was left out")
	}
	if err == nil {
		x.got.Files++
	}
	return errno(x.in(), name, err)
}

// walk opens a folder below another one, without following symbolic links.
func (x *extractor) walk(from *os.File, below string) (*os.File, error) {
	dir, err := sys.OpenAt(from, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil || below == "." {
		return dir, err
	}
	for name := range strings.SplitSeq(below, "/") {
		next, err := sys.OpenAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		_ = dir.Close() // only looked into
		if err != nil {
			return nil, err
		}
		dir = next
	}
	return dir, nil
}

// node makes a device node or a FIFO, if that is asked for.
func (x *extractor) node(h *tar.Header, name string) error {
	if !x.special {
		x.got.Skipped++
		return nil
	}
	kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[h.Typeflag]
	device := unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	dir := x.in()
	err := sys.Control(dir, func(fd int) error {
		if err := unix.Mknodat(fd, name, kind|uint32(h.Mode)&0o777, int(device)); err != nil {
			return err
		}
		if err := unix.Fchownat(fd, name, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		return unix.UtimesNanoAt(fd, name, times(h), unix.AT_SYMLINK_NOFOLLOW)
	})
	if err == nil {
		x.got.Special++
	}
	return errno(dir, name, err)
}

const (
	partialPrefix = ".imgbackup-"
	partialSuffix = ".partial"
)

// partialName is one for a file that is not whole yet.
func partialName() string { return partialPrefix + rand.Text() + partialSuffix }

// isPartial reports whether partialName gives such names.
func isPartial(name string) bool {
	return strings.HasPrefix(name, partialPrefix) && strings.HasSuffix(name, partialSuffix) && len(name) == len(partialName())
}

// file makes a plain file, which gets its name when it is whole.
func (x *extractor) file(h *tar.Header, name string, content func(io.Writer) error) (err error) {
	dir := x.in()
	f, partial, err := sys.CreateLocked(dir, partialName, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, sys.UnlinkAt(dir, partial))
		}
	}()
	w := &sparse{ctx: x.ctx, f: f, part: x.parts[:0]}
	if err = f.Truncate(h.Size); err == nil { // at once, since a guest's sparse file may be larger than can be here
		err = content(w)
	}
	if err == nil {
		err = w.end(h.Size)
	}
	if err == nil {
		err = x.likeFile(f, h)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = rename(dir, partial, name); err != nil {
		return errno(dir, name, err)
	}
	x.got.Files++
	x.got.Bytes += h.Size
	return nil
}

// rename gives a file its name, if nothing has that.
func rename(dir *os.File, from, to string) error {
	return sys.Control(dir, func(fd int) error {
		err := unix.Renameat2(fd, from, fd, to, unix.RENAME_NOREPLACE)
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
			return err
		}
		// A file system that can't do it at once.
		var st unix.Stat_t
		if err := unix.Fstatat(fd, to, &st, unix.AT_SYMLINK_NOFOLLOW); !errors.Is(err, unix.ENOENT) {
			return errors.Join(unix.EEXIST, err)
		}
		return unix.Renameat(fd, from, fd, to)
	})
}

// likeFile gives an open file or folder its owner, mode and time, as far as that is allowed.
func (x *extractor) likeFile(f *os.File, h *tar.Header) error {
	mode := uint32(h.Mode) & 0o777
	if h.Typeflag == tar.TypeDir {
		mode |= uint32(h.Mode) & unix.S_ISVTX
	}
	if x.special {
		mode = uint32(h.Mode) & 0o7777
	}
	return sys.Control(f, func(fd int) error {
		if x.owners {
			if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
				return fmt.Errorf("%s: its owner: %w", f.Name(), err)
			}
		}
		if err := unix.Fchmod(fd, mode); err != nil {
			return fmt.Errorf("%s: its mode: %w", f.Name(), err)
		}
		t := times(h)
		if err := unix.UtimesNanoAt(fd, "", t, unix.AT_EMPTY_PATH); err != nil {
			err = unix.Futimes(fd, []unix.Timeval{unix.NsecToTimeval(t[0].Nano()), unix.NsecToTimeval(t[1].Nano())})
			if err != nil {
				return fmt.Errorf("%s: its time: %w", f.Name(), err)
			}
		}
		return nil
	})
}

// times are that of the last modification, for both that can be set.
func times(h *tar.Header) []unix.Timespec {
	t := unix.Timespec{Sec: h.ModTime.Unix(), Nsec: int64(h.ModTime.Nanosecond())}
	return []unix.Timespec{t, t}
}

// sparse writes a file whose zeros are holes.
type sparse struct {
	ctx  context.Context
	f    *os.File
	part []byte // that is not written yet
	at   int64  // where it goes
}

func (s *sparse) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		k := min(len(p), cap(s.part)-len(s.part))
		s.part, p = append(s.part, p[:k]...), p[k:]
		if len(s.part) == cap(s.part) {
			if err := s.flush(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

// flush writes what is there, unless it is zeros.
func (s *sparse) flush() error {
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	for at := 0; at < len(s.part); at += 4096 {
		block := s.part[at:min(at+4096, len(s.part))]
		if zero.Is(block) {
			continue
		}
		end := at + len(block)
		for end < len(s.part) && !zero.Is(s.part[end:min(end+4096, len(s.part))]) {
			end = min(end+4096, len(s.part))
		}
		if _, err := s.f.WriteAt(s.part[at:end], s.at+int64(at)); err != nil {
			return err
		}
		at = (end - 1) &^ 4095
	}
	s.at += int64(len(s.part))
	s.part = s.part[:0]
	return nil
}

// end completes a file that has that size already.
func (s *sparse) end(size int64) error {
	if err := s.flush(); err != nil {
		return err
	}
	if s.at != size {
		return fmt.Errorf("%s: %d bytes came of %d", s.f.Name(), s.at, size)
	}
	return nil
}
