// SPDX-License-Identifier: Apache-2.0

package files

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/guestfs"
	"github.com/imgbackup/imgbackup/internal/sys"
)

// GetOptions are how files are taken out.
type GetOptions struct {
	// Special lets root make device nodes and FIFOs, and files that run as another user
	// (set-uid), too. For others it is of no use.
	Special bool
}

// Got is what was taken out.
type Got struct {
	Files   int64 `json:"files"` // plain ones, names of the same file included
	Folders int64 `json:"folders"`
	Links   int64 `json:"links"` // symbolic ones
	Special int64 `json:"special"`
	Bytes   int64 `json:"bytes"` // of plain files

	// Skipped are things that are made only if that is asked for, LeftOut those that could
	// not be made: their number, and the first of LeftOut.
	Skipped int64     `json:"skipped"`
	LeftOut int64     `json:"left_out"`
	First   []LeftOut `json:"left_out_first,omitempty"`
}

// LeftOut is something that could not be made here.
type LeftOut struct {
	Path string // as the guest has it, below what was asked for
	Why  string
}

// maxLeftOut bounds [Got.First].
const maxLeftOut = 100

func (g *Got) leaveOut(name, why string) {
	g.LeftOut++
	if len(g.First) < maxLeftOut {
		g.First = append(g.First, LeftOut{name, why})
	}
}

// ErrExists says that something of that name is there already. Nothing is replaced.
var ErrExists = errors.New("it is there already, and nothing is replaced")

// Get takes what is at paths, and below, out into a folder, which must be there: each under
// its last name; of / what lies in it, into an empty folder. Symbolic links at the end of
// paths are followed, others are made as they are. Whatever happens, files that are there
// are whole.
func (l *Look) Get(ctx context.Context, paths []string, dir string, o GetOptions) (*Got, error) {
	got := &Got{}
	err := l.get(ctx, paths, dir, o, got)
	return got, l.truth(ctx, err)
}

func (l *Look) get(ctx context.Context, paths []string, dir string, o GetOptions, got *Got) (err error) {
	to, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	// What cannot be removed is another's, and harms nothing.
	_ = sys.Sweep(to, func(name string, folder bool) bool { return !folder && isPartial(name) })
	if err := checkNew(to, paths); err != nil {
		return err
	}
	var missed error
	for _, at := range paths {
		err := l.getPath(ctx, at, to, o, got)
		if err != nil && !l.unreadable(ctx, err) {
			return errors.Join(missed, err)
		}
		missed = errors.Join(missed, err) // the others are wanted all the same
	}
	// When this is done it is done, whatever happens to the host.
	return errors.Join(missed, sys.Control(to, unix.Syncfs))
}

// unreadable reports whether an error is about what the guest has at one place, so that there
// may be something to be read elsewhere.
func (l *Look) unreadable(ctx context.Context, err error) bool {
	fault := l.server.Fault()
	return ctx.Err() == nil && errors.As(err, new(*guestfs.CallError)) && !errors.Is(err, guestfs.ErrEnded) && (fault == nil || archive.IsDamage(fault))
}

// getPath takes out what is at one path.
func (l *Look) getPath(ctx context.Context, at string, to *os.File, o GetOptions, got *Got) error {
	e, err := l.stat(ctx, at, true)
	if err != nil {
		return err
	}
	x := newExtractor(ctx, to, got, o.Special && os.Geteuid() == 0)
	if e.Dir() {
		err = l.getFolder(ctx, e, base(at), x)
	} else {
		err = l.getOne(ctx, e, base(at), x)
	}
	if err = errors.Join(err, x.close()); err == nil {
		return nil
	}
	if e.Dir() && (x.made || x.below == "") {
		err = l.keepWhole(ctx, to, base(at), e.Path, got, err)
	}
	return fmt.Errorf("%s: %w", at, err)
}

// base is what is made of a path: its last name; empty: what lies in it, with no name.
func base(at string) string {
	if name := path.Base(path.Clean("/" + at)); name != "/" {
		return name
	}
	return ""
}

// checkNew makes sure that nothing is there that will be made.
func checkNew(to *os.File, paths []string) error {
	seen := make(map[string]bool)
	for _, at := range paths {
		name := base(at)
		if seen[name] || seen[""] || name == "" && len(seen) > 0 {
			return fmt.Errorf("%s: another path has the same name", at)
		}
		seen[name] = true
		if name == "" {
			if _, err := to.Readdirnames(1); !errors.Is(err, io.EOF) {
				return errors.Join(fmt.Errorf("%s is not empty: all of a guest goes into a folder of its own", to.Name()), err)
			}
			continue
		}
		if _, err := sys.StatAt(to, name); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s: %w", path.Join(to.Name(), name), errors.Join(ErrExists, err))
		}
	}
	return nil
}

// getFolder takes out a folder with all that lies in it.
func (l *Look) getFolder(ctx context.Context, e *guestfs.Entry, name string, x *extractor) error {
	return l.archive(ctx, e.Path, ".", func(r *tar.Reader) error { return x.all(r, name) })
}

// archive lets something be read of what lies in a folder, and below.
func (l *Look) archive(ctx context.Context, folder, name string, read func(*tar.Reader) error) error {
	r, w := io.Pipe()
	sent := make(chan error, 1)
	go func() {
		err := l.guest.Tar(ctx, folder, []string{name}, w)
		_ = w.CloseWithError(err) // never fails
		sent <- err
	}()
	err := read(tar.NewReader(r))
	if err == nil {
		_, err = io.Copy(io.Discard, r) // what fills up the last block
	}
	_ = r.CloseWithError(err) // never fails
	serr := <-sent
	if err == nil || serr != nil && !errors.Is(serr, err) && ctx.Err() == nil {
		err = errors.Join(err, serr)
	}
	return err
}

// getOne takes out what is no folder.
func (l *Look) getOne(ctx context.Context, e *guestfs.Entry, name string, x *extractor) error {
	if !e.Regular() {
		return ErrNoPlainFile
	}
	h := &tar.Header{Size: e.Size, Mode: int64(e.Mode & 0o7777), Uid: int(e.UID), Gid: int(e.GID), ModTime: e.Modified}
	if e.Taken >= e.Size {
		return x.file(h, name, func(w io.Writer) error { return l.guest.Download(ctx, e.Path, w) })
	}
	// It has holes, which only an archive leaves out.
	made := false
	err := l.archive(ctx, path.Dir(e.Path), path.Base(e.Path), func(r *tar.Reader) error {
		if _, err := r.Next(); err != nil {
			return err
		}
		err := x.file(h, name, func(w io.Writer) error { _, err := io.Copy(w, r); return err })
		made = err == nil
		return err
	})
	if err != nil && made { // what could not be read is zeros in it
		x.got.Files, x.got.Bytes = x.got.Files-1, x.got.Bytes-h.Size
		err = errors.Join(err, sys.UnlinkAt(x.in(), name))
	}
	return err
}
