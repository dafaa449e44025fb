// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"path"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/files"
	"github.com/imgbackup/imgbackup/guestfs"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/request"
)

// finding is what files are looked for by.
type finding struct {
	name, kind     string
	larger, newer  string
	smaller, older string
	zero, long     bool

	atLeast, atMost int64 // bytes; atMost < 0: any size
	from, to        time.Time
	mode            uint32 // of type; 0: any
}

func filesFind() fileCommand {
	return fileCommand{
		name: "find", takes: "[PATH]", paths: "perhaps a PATH", most: 1, here: true, suggest: []string{"search", "locate"},
		short: "Find files of the guest by name, type, size or time",
		long: `find lists what lies in a folder of the guest and in all folders below (/ by default), as it comes: all of it, or
what all the flags fit.`,
		example: `  imgbackup files find web /home --name '*.ods'
  imgbackup files find web --type file --larger 1G --long
  imgbackup files find web /var --newer 2026-11-01 --json`,
		make: func(a *app, f *pflag.FlagSet) fileWork {
			var q finding
			f.StringVar(&q.name, "name", "", "the last part of the path fits this `PATTERN`, with * ? and [a-z]")
			f.StringVar(&q.kind, "type", "", "it is a `TYPE`: file, folder, link, fifo, socket, block or char")
			f.StringVar(&q.larger, "larger", "", "it has at least this `SIZE`, as 10M")
			f.StringVar(&q.smaller, "smaller", "", "it has at most this `SIZE`")
			f.StringVar(&q.newer, "newer", "", "it was modified at this `TIME` or later, as 2026-11-01 or 2026-11-01T12:00:00Z")
			f.StringVar(&q.older, "older", "", "it was modified before this `TIME`")
			f.BoolVar(&q.long, "long", false, "show what ls shows, not only paths")
			f.BoolVar(&q.zero, "print0", false, "write paths as they are, each with a zero byte at its end")
			before := func() error { return q.complete(f) }
			return fileWork{before, func(ctx context.Context, l *files.Look, paths []string) error {
				return a.find(ctx, l, paths[0], &q)
			}}
		},
	}
}

// complete reads the flags.
func (q *finding) complete(f *pflag.FlagSet) (err error) {
	if err := notEmpty(f, "name", "type", "larger", "smaller", "newer", "older"); err != nil {
		return err
	}
	if err := exclude(f, "print0", "long"); err != nil {
		return err
	}
	if _, err := path.Match(q.name, ""); err != nil {
		return usage.Errorf("--name %q: it is no pattern", q.name)
	}
	q.mode = 0
	for mode, name := range kindNames {
		if name == q.kind {
			q.mode = mode
		}
	}
	if q.kind != "" && q.mode == 0 {
		return usage.Errorf("--type %q: want file, folder, link, fifo, socket, block or char", q.kind)
	}
	q.atMost = -1
	for _, s := range []struct {
		text string
		to   *int64
	}{{q.larger, &q.atLeast}, {q.smaller, &q.atMost}} {
		if s.text != "" {
			if *s.to, err = request.ParseSize(s.text); err != nil {
				return usage.Wrap(err)
			}
		}
	}
	for _, t := range []struct {
		text string
		to   *time.Time
	}{{q.newer, &q.from}, {q.older, &q.to}} {
		if t.text != "" {
			if *t.to, err = parseWhen(t.text); err != nil {
				return err
			}
		}
	}
	return nil
}

// parseWhen reads a day, which begins here at midnight, or a time.
func parseWhen(text string) (time.Time, error) {
	if t, err := time.ParseInLocation("2006-01-02", text, time.Local); err == nil {
		return t, nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, usage.Errorf("%.40q is no time: want 2026-11-01 or 2026-11-01T12:00:00Z", text)
	}
	return t, nil
}

// fits reports whether something is what is looked for.
func (q *finding) fits(e *guestfs.Entry, at string) bool {
	if q.name != "" {
		if ok, err := path.Match(q.name, path.Base(at)); err != nil || !ok {
			return false
		}
	}
	switch {
	case q.mode != 0 && e.Mode&unix.S_IFMT != q.mode, e.Size < q.atLeast, q.atMost >= 0 && e.Size > q.atMost:
		return false
	case !q.from.IsZero() && e.Modified.Before(q.from), !q.to.IsZero() && !e.Modified.Before(q.to):
		return false
	}
	return true
}

func (a *app) find(ctx context.Context, l *files.Look, at string, q *finding) error {
	p := a.newEntries(l, at)
	err := l.List(ctx, at, files.ListOptions{Recursive: true, Itself: true}, func(e *guestfs.Entry) error {
		below := e.Path
		if e.Path = rooted(at, below); !q.fits(e, e.Path) {
			return nil
		}
		switch {
		case p.json || q.long:
			return p.print(e)
		case q.zero:
			_, err := p.w.WriteString(e.Path + "\x00")
			return err
		}
		_, err := p.w.WriteString(strings.TrimSuffix(escaped(e.Path), "\n") + "\n")
		return err
	})
	return p.endAfter(err)
}
