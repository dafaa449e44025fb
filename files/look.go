// SPDX-License-Identifier: Apache-2.0

package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/guestfs"
	"github.com/imgbackup/imgbackup/internal/scratch"
	"github.com/imgbackup/imgbackup/serve"
	"github.com/imgbackup/imgbackup/view"
)

// Options are how disks are looked into.
type Options struct {
	Place   guestfs.Place // where paths begin
	Keys    []guestfs.Key // of encrypted volumes, in an order in which they can be opened
	Emulate bool          // go without KVM
	Program string        // guestfish, by name or path; empty: guestfish
	TempDir string        // where folders for the time being are made
	Cache   string        // a folder of this host in which the appliance remembers how it starts; empty: nowhere
	Note    func(string)  // is told what a person should know
}

// Look is a checkpoint that is being looked into, by an appliance of its own. Its methods
// must not be called at the same time.
type Look struct {
	Manifest *chain.Manifest

	o      Options
	folder *scratch.Folder
	view   *view.Checkpoint
	server *serve.Local
	guest  *guestfs.Session
	told   bool // what is mounted
}

// folderPrefix begins the names of the folders for the time being.
const folderPrefix = "imgbackup-files."

// Open begins to look into a checkpoint, until Close or until ctx ends.
func Open(ctx context.Context, repo *chain.Repository, m *chain.Manifest, o Options) (_ *Look, err error) {
	l := &Look{Manifest: m, o: o}
	defer func() {
		if err != nil {
			err = errors.Join(l.truth(ctx, err), l.Close())
		}
	}()
	if l.folder, err = scratch.Make(o.TempDir, folderPrefix); err != nil {
		return nil, err
	}
	sockets, err := l.folder.SocketDir("nbd")
	if err != nil {
		return nil, err
	}
	if l.view, err = view.Open(ctx, repo, m, nil, view.Options{}); err != nil {
		return nil, err
	}
	// What has failed is told once, by the command that needs it.
	if l.server, err = serve.StartLocal(ctx, l.view, sockets, func(string) {}); err != nil {
		return nil, err
	}
	var disks []guestfs.Disk
	for _, e := range l.server.Exports {
		disks = append(disks, guestfs.Disk{Name: e.Name, Socket: l.server.Socket})
	}
	l.guest, err = guestfs.Start(ctx, guestfs.Options{
		Disks: disks, TempDir: l.folder.Path(), Program: o.Program, Emulate: o.Emulate, Keys: o.Keys, Cache: o.Cache, Note: o.Note,
	})
	return l, err
}

// Close ends the appliance and the server, and removes all that they have left.
func (l *Look) Close() (err error) {
	if l.guest != nil {
		err = l.guest.Close()
	}
	if l.server != nil {
		l.server.Stop()
	}
	if l.view != nil {
		l.view.Close()
	}
	if l.folder != nil {
		err = errors.Join(err, l.folder.Remove())
	}
	return err
}

// BesideError says that all that was asked for could be read, and is right, and that something
// beside it is damaged.
type BesideError struct{ Err error }

func (e *BesideError) Error() string {
	return "what was asked for could be read, and beside it there is damage: " + e.Err.Error()
}

func (e *BesideError) Unwrap() error { return e.Err }

// truth is the error of something that was done, or tried: what the repository did not
// give comes before what the appliance made of it; of damage both are told.
func (l *Look) truth(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if l.server == nil || l.server.Fault() == nil {
		return err
	}
	fault := l.server.Fault()
	switch {
	case !archive.IsDamage(fault):
		return fault
	case err == nil:
		return &BesideError{fault}
	}
	return fmt.Errorf("%w: %w", err, fault) // what of the guest it is, too
}

// Volumes are the volumes on all disks.
func (l *Look) Volumes(ctx context.Context) ([]guestfs.Volume, error) {
	all, err := l.guest.Volumes(ctx)
	return all, l.truth(ctx, err)
}

// Use lets paths begin somewhere else from now on. What can't be mounted there is an error, and
// then they begin where they did.
func (l *Look) Use(ctx context.Context, p guestfs.Place) error {
	was, told := l.o.Place, l.told
	l.o.Place, l.told = p, false
	err := l.truth(ctx, l.enter(ctx))
	if err != nil && !errors.As(err, new(*BesideError)) {
		l.o.Place, l.told = was, told
	}
	return err
}

// enter mounts what is looked at, and notes what is not.
func (l *Look) enter(ctx context.Context) error {
	in, err := l.guest.Enter(ctx, l.o.Place)
	if err != nil || l.told {
		return err
	}
	l.told = true
	for _, m := range in.Missing {
		l.o.Note("not mounted: " + m)
	}
	if in.System != nil || l.o.Place.Device != "" {
		return nil
	}
	volumes, err := l.guest.Volumes(ctx)
	for i := range volumes {
		if v := &volumes[i]; v.Encrypted() && !v.Opened {
			l.o.Note(fmt.Sprintf("%s is encrypted, and not looked into; only %s is", v.Device, in.Volume.Device))
		}
	}
	return err
}

// Stat is about a path; follow says whether symbolic links are followed at its end.
func (l *Look) Stat(ctx context.Context, at string, follow bool) (*guestfs.Entry, error) {
	e, err := l.stat(ctx, at, follow)
	return e, l.truth(ctx, err)
}

func (l *Look) stat(ctx context.Context, at string, follow bool) (e *guestfs.Entry, err error) {
	if err := l.enter(ctx); err != nil {
		return nil, err
	}
	real, err := l.place(ctx, at, follow)
	if err != nil {
		return nil, err
	}
	info, err := l.guest.Lstat(ctx, real)
	if err != nil {
		return nil, err
	}
	e = &guestfs.Entry{Info: *info, Path: real}
	if e.Symlink() {
		e.Link, err = l.guest.ReadLink(ctx, real)
	}
	return e, err
}

// place is where a path lies, without symbolic links in it; at its end they are followed
// or not.
func (l *Look) place(ctx context.Context, at string, follow bool) (string, error) {
	at = path.Clean("/" + at)
	if follow || at == "/" {
		return l.guest.RealPath(ctx, at)
	}
	folder, err := l.guest.RealPath(ctx, path.Dir(at))
	if err != nil {
		return "", err
	}
	return path.Join(folder, path.Base(at)), nil
}

// ListOptions are how things are listed.
type ListOptions struct {
	Recursive bool // all that lies in folders, too; else what lies in the folder itself
	Sorted    bool // by name; else as they come
	Itself    bool // a folder itself, too, first; else only what lies in it
}

// List passes what lies at a path to each, which must not keep it. Of a folder that is what
// lies in it, by paths below it; else the thing itself, whose path is then empty. A symbolic
// link to a folder is followed.
func (l *Look) List(ctx context.Context, at string, o ListOptions, each func(*guestfs.Entry) error) error {
	return l.truth(ctx, l.list(ctx, at, o, each))
}

func (l *Look) list(ctx context.Context, at string, o ListOptions, each func(*guestfs.Entry) error) error {
	e, err := l.stat(ctx, at, false)
	if err != nil {
		return err
	}
	root := e.Path
	if e.Symlink() {
		if led, err := l.stat(ctx, at, true); err == nil && led.Dir() {
			e, root = led, led.Path
		} else if err != nil && !errors.Is(err, guestfs.ErrNoFile) {
			return err
		}
	}
	if !e.Dir() {
		e.Path = ""
		return each(e)
	}
	listing := guestfs.Listing{Root: root, Depth: 1, Sorted: o.Sorted}
	if o.Recursive {
		listing.Depth = 0
	}
	return l.guest.List(ctx, listing, func(e *guestfs.Entry) error {
		if e.Path == "" && !o.Itself {
			return nil
		}
		return each(e)
	})
}

// ErrNoPlainFile says that what should be read is something else.
var ErrNoPlainFile = errors.New("it is no plain file")

// Cat copies the content of a file to w, symbolic links followed as they lead in the guest.
func (l *Look) Cat(ctx context.Context, at string, w io.Writer) error {
	return l.truth(ctx, l.cat(ctx, at, w))
}

func (l *Look) cat(ctx context.Context, at string, w io.Writer) error {
	e, err := l.stat(ctx, at, true)
	if err != nil {
		return err
	}
	if !e.Regular() {
		return fmt.Errorf("%s: %w", at, ErrNoPlainFile)
	}
	c := &counted{w: w}
	if err := l.guest.Download(ctx, e.Path, c); err != nil {
		return err
	}
	if c.n != e.Size {
		return fmt.Errorf("%s: libguestfs gave %d bytes of %d", at, c.n, e.Size)
	}
	return nil
}

// counted counts what is written.
type counted struct {
	w io.Writer
	n int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
