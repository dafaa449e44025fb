// SPDX-License-Identifier: Apache-2.0

package files

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/guestfs"
	"github.com/imgbackup/imgbackup/internal/spool"
)

// Kind is what became of a path between two checkpoints.
type Kind string

const (
	Added   Kind = "added"
	Removed Kind = "removed"
	Changed Kind = "changed"
)

// Change is a path that is not in both checkpoints what it was.
type Change struct {
	Path string // below what was compared; empty: that itself
	Kind Kind
	// What has changed: type, size, content, mode, owner, link, mtime, ctime, in this order.
	// ctime stands alone where nothing else is known to have changed, but something has, as
	// extended attributes or the number of names.
	What     []string
	From, To *guestfs.Entry // nil of what was added, or removed
}

// Comparing is how much of contents is read.
type Comparing string

const (
	// ContentNeeded reads files of the same size of which some time has changed.
	ContentNeeded Comparing = "needed"
	// ContentAll reads all files of the same size: also where times were set back.
	ContentAll Comparing = "all"
	// ContentNone reads none: what may have changed has.
	ContentNone Comparing = "none"
)

// Diff passes what differs at a path between two checkpoints to each: first, by path, what
// shows without reading contents, then what took that.
func Diff(ctx context.Context, from, to *Look, at string, how Comparing, each func(*Change) error) error {
	d := &differ{from: from, to: to, at: at, how: how, each: each}
	defer d.later.Close()
	err := d.run(ctx)
	// Of both, since what one of them has met may be why the other one ended.
	if ferr := from.truth(ctx, nil); ferr != nil {
		return ferr
	}
	return to.truth(ctx, err)
}

type differ struct {
	from, to *Look
	at       string
	how      Comparing
	each     func(*Change) error
	later    spool.Spool // paths of what has to be read, each with a zero byte at its end
}

func (d *differ) run(ctx context.Context) error {
	for _, l := range []*Look{d.from, d.to} {
		if err := l.enter(ctx); err != nil {
			return fmt.Errorf("checkpoint %s: %w", l.Manifest.Checkpoint, err)
		}
	}
	if err := d.merge(ctx); err != nil {
		return err
	}
	return d.contents(ctx)
}

// stream lists one side, and ends it with nil.
func (d *differ) stream(ctx context.Context, l *Look, out chan<- *guestfs.Entry) error {
	defer close(out)
	err := l.list(ctx, d.at, ListOptions{Recursive: true, Sorted: true, Itself: true}, func(e *guestfs.Entry) error {
		select {
		case out <- e:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	if errors.Is(err, guestfs.ErrNoFile) {
		return nil // then there is nothing
	}
	if err != nil {
		return fmt.Errorf("checkpoint %s: %w", l.Manifest.Checkpoint, err)
	}
	return nil
}

// merge goes through both lists side by side.
func (d *differ) merge(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	froms, tos := make(chan *guestfs.Entry, 256), make(chan *guestfs.Entry, 256)
	group.Go(func() error { return d.stream(ctx, d.from, froms) })
	group.Go(func() error { return d.stream(ctx, d.to, tos) })
	group.Go(func() error {
		any := false
		from, to := <-froms, <-tos
		for from != nil || to != nil {
			any = true
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx) // a list that ended early is not what there is
			}
			var err error
			switch order := compare(from, to); {
			case order < 0:
				err = d.each(&Change{Path: from.Path, Kind: Removed, From: from})
				from = <-froms
			case order > 0:
				err = d.each(&Change{Path: to.Path, Kind: Added, To: to})
				to = <-tos
			default:
				err = d.both(from, to)
				from, to = <-froms, <-tos
			}
			if err != nil {
				return err
			}
		}
		if !any && ctx.Err() == nil {
			return fmt.Errorf("%s: %w, in both checkpoints", d.at, guestfs.ErrNoFile)
		}
		return nil
	})
	return group.Wait()
}

// compare orders entries as [guestfs.Listing] sorts them; none comes last.
func compare(a, b *guestfs.Entry) int {
	switch {
	case a == nil:
		return 1
	case b == nil:
		return -1
	}
	return bytes.Compare([]byte(a.Path+"//"), []byte(b.Path+"//"))
}

// both compares what is in both checkpoints.
func (d *differ) both(from, to *guestfs.Entry) error {
	what, read := differences(from, to, d.how)
	if read {
		for _, e := range []*guestfs.Entry{from, to} {
			if _, err := d.later.Write(guestfs.FormatEntry(e)); err != nil {
				return err
			}
		}
		return nil
	}
	if len(what) == 0 {
		return nil
	}
	return d.each(&Change{Path: from.Path, Kind: Changed, What: what, From: from, To: to})
}

// differences are what of an entry has changed, as far as that shows; read says that the
// contents have to be compared to know whether they have.
func differences(from, to *guestfs.Entry, how Comparing) (what []string, read bool) {
	if from.Type() != to.Type() {
		return []string{"type"}, false
	}
	plain := from.Regular()
	add := func(differs bool, name string) {
		if differs {
			what = append(what, name)
		}
	}
	add(plain && from.Size != to.Size, "size")
	add(plain && from.Size != to.Size, "content")
	times := !from.Modified.Equal(to.Modified) || !from.Changed.Equal(to.Changed)
	if plain && from.Size == to.Size && from.Size > 0 {
		read = how == ContentAll || times && how == ContentNeeded
		add(times && how == ContentNone, "content")
	}
	add(from.Mode != to.Mode, "mode")
	add(from.UID != to.UID || from.GID != to.GID, "owner")
	add(from.Link != to.Link, "link")
	// A folder's times change with what lies in it, which is told by itself.
	add(!from.Dir() && !from.Modified.Equal(to.Modified), "mtime")
	add(!from.Dir() && len(what) == 0 && !from.Changed.Equal(to.Changed), "ctime")
	return what, read
}

// contents compares the contents that have to be.
func (d *differ) contents(ctx context.Context) error {
	from := (*guestfs.Entry)(nil)
	return guestfs.EachEntry(io.NewSectionReader(&d.later, 0, d.later.Size()), func(e *guestfs.Entry) error {
		if from == nil {
			from = e
			return nil
		}
		a, b := from, e
		from = nil
		same, err := d.same(ctx, a.Path)
		if err != nil {
			return err
		}
		what, _ := differences(a, b, ContentNeeded)
		if !same {
			if len(what) == 1 && what[0] == "ctime" {
				what = nil
			}
			what = append([]string{"content"}, what...)
		}
		if len(what) == 0 {
			return nil
		}
		return d.each(&Change{Path: a.Path, Kind: Changed, What: what, From: a, To: b})
	})
}

// same reports whether a file has the same content in both checkpoints.
func (d *differ) same(ctx context.Context, below string) (bool, error) {
	var sums [2]string
	group, ctx := errgroup.WithContext(ctx)
	for i, l := range []*Look{d.from, d.to} {
		group.Go(func() error {
			real, err := l.place(ctx, d.at, true)
			if err == nil {
				if below != "" {
					real = trimSlash(real) + "/" + below
				}
				sums[i], err = l.guest.Checksum(ctx, real)
			}
			if err != nil {
				return fmt.Errorf("checkpoint %s: %w", l.Manifest.Checkpoint, err)
			}
			return nil
		})
	}
	err := group.Wait()
	return sums[0] == sums[1], err
}

func trimSlash(at string) string {
	if at == "/" {
		return ""
	}
	return at
}
