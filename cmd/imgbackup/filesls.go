// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/files"
	"github.com/imgbackup/imgbackup/guestfs"
)

func filesLs() fileCommand {
	return fileCommand{
		name: "ls", takes: "[PATH]", paths: "perhaps a PATH", most: 1, here: true, suggest: []string{"list", "dir"},
		short: "List a folder of the guest",
		long: `ls lists what lies in a folder of the guest (/ by default), sorted by name, or shows one file. A symbolic link to a
folder is followed.`,
		example: "  imgbackup files ls web /var/log\n  imgbackup files ls web --checkpoint monday --volume /dev/sdb1 --json",
		make: func(a *app, f *pflag.FlagSet) fileWork {
			recursive := f.BoolP("recursive", "R", false, "list all that lies in folders below, too, by paths")
			return fileWork{run: func(ctx context.Context, l *files.Look, paths []string) error {
				at := paths[0]
				p := a.newEntries(l, at)
				err := l.List(ctx, at, files.ListOptions{Recursive: *recursive, Sorted: true}, func(e *guestfs.Entry) error {
					if e.Path == "" { // it is no folder
						e.Path = path.Base(at)
					}
					return p.print(e)
				})
				return p.endAfter(err)
			}}
		},
	}
}

// entries prints what is found as it comes.
type entries struct {
	json bool
	w    *bufio.Writer
	n    int64
}

// newEntries begins a list of what is found at a path.
func (a *app) newEntries(l *files.Look, at string) *entries {
	p := &entries{json: a.json, w: bufio.NewWriter(a.out)}
	if p.json {
		fmt.Fprintf(p.w, "{\n  \"domain\": %s,\n  \"checkpoint\": %s,\n  \"path\": %s,\n  \"entries\": [", quoted(l.Manifest.Domain), quoted(l.Manifest.Checkpoint), quoted(at))
	}
	return p
}

func (p *entries) print(e *guestfs.Entry) error {
	p.n++
	if !p.json {
		_, err := p.w.WriteString(longLine(e))
		return err
	}
	return p.value(viewEntry(e))
}

// value prints one of a list in JSON.
func (p *entries) value(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if p.n > 1 {
		_ = p.w.WriteByte(',') // the next one has its error
	}
	_, err = p.w.WriteString("\n    " + string(text))
	return err
}

// endAfter ends the list, as far as it came.
func (p *entries) endAfter(err error) error {
	if err == nil || errors.As(err, new(*files.BesideError)) {
		return errors.Join(err, p.end())
	}
	return errors.Join(err, p.w.Flush())
}

func (p *entries) end() error {
	if p.json {
		if p.n > 0 {
			_, _ = p.w.WriteString("\n  ") // Flush has its error
		}
		_, _ = p.w.WriteString("]\n}\n")
	}
	return p.w.Flush()
}

// kindNames are the types of files as JSON has them.
var kindNames = map[uint32]string{
	unix.S_IFREG: "file", unix.S_IFDIR: "folder", unix.S_IFLNK: "link", unix.S_IFIFO: "fifo", unix.S_IFSOCK: "socket",
	unix.S_IFBLK: "block", unix.S_IFCHR: "char",
}

// entryJSON is a file, folder or else as JSON has it.
type entryJSON struct {
	Path     string    `json:"path"`
	PathRaw  string    `json:"path_base64,omitempty"` // if it is no UTF-8
	Type     string    `json:"type"`
	Size     int64     `json:"size"`
	Mode     string    `json:"mode"` // octal, without the type
	UID      int64     `json:"uid"`
	GID      int64     `json:"gid"`
	Modified time.Time `json:"modified"`
	Changed  time.Time `json:"changed"`
	Inode    uint64    `json:"inode"`
	Links    int64     `json:"links"`
	Link     string    `json:"link,omitempty"`
	LinkRaw  string    `json:"link_base64,omitempty"`
}

func viewEntry(e *guestfs.Entry) entryJSON {
	out := entryJSON{
		Type: kindNames[e.Mode&unix.S_IFMT], Size: e.Size, Mode: fmt.Sprintf("%04o", e.Mode&0o7777), UID: e.UID, GID: e.GID,
		Modified: e.Modified, Changed: e.Changed, Inode: uint64(e.Inode), Links: e.Links,
	}
	out.Path, out.PathRaw = jsonName(e.Path)
	out.Link, out.LinkRaw = jsonName(e.Link)
	return out
}

// jsonName is a name of the guest's as JSON can have it; raw is what it is in fact, if that
// differs.
func jsonName(name string) (text, raw string) {
	if utf8.ValidString(name) {
		return name, ""
	}
	return strings.ToValidUTF8(name, "\ufffd"), base64.StdEncoding.EncodeToString([]byte(name))
}

// modeText is a mode as ls shows it.
func modeText(mode uint32) string {
	letter := map[uint32]string{unix.S_IFDIR: "d", unix.S_IFLNK: "l", unix.S_IFIFO: "p", unix.S_IFSOCK: "s", unix.S_IFBLK: "b", unix.S_IFCHR: "c"}[mode&unix.S_IFMT]
	if letter == "" {
		letter = "-"
	}
	b := []byte(letter + fs.FileMode(mode & 0o777).String()[1:])
	for at, bit := range map[int]struct {
		mask   uint32
		letter byte
	}{3: {unix.S_ISUID, 's'}, 6: {unix.S_ISGID, 's'}, 9: {unix.S_ISVTX, 't'}} {
		if mode&bit.mask == 0 {
			continue
		}
		if b[at] == 'x' {
			b[at] = bit.letter
		} else {
			b[at] = bit.letter - 'a' + 'A'
		}
	}
	return string(b)
}

// longLine is an entry for people.
func longLine(e *guestfs.Entry) string {
	return fmt.Sprintf("%s %5d %5d %9s  %s  %s\n", modeText(e.Mode), e.UID, e.GID, size(e.Size), e.Modified.Local().Format("2006-01-02 15:04:05"), entryName(e))
}

// entryName is the name of an entry for people, and where it leads to.
func entryName(e *guestfs.Entry) string {
	text := escaped(e.Path)
	if e.Symlink() {
		text += " -> " + escaped(e.Link)
	}
	return text
}

// escaped is a name from a guest such that it does nothing to a terminal and stays on its
// line, and no two look the same.
func escaped(name string) string {
	var b strings.Builder
	for i := 0; i < len(name); {
		r, n := utf8.DecodeRuneInString(name[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, name[i])
		case r == '\\' || !unicode.IsPrint(r):
			text := strconv.QuoteRune(r)
			b.WriteString(text[1 : len(text)-1])
		default:
			b.WriteRune(r)
		}
		i += n
	}
	return b.String()
}

// stopped passes on what is written until a run is to end: whoever reads may not.
type stopped struct {
	ctx context.Context
	w   io.Writer
}

func (s *stopped) Write(p []byte) (int, error) {
	p = append([]byte(nil), p...) // it may be written still when nobody waits for that any more
	done := make(chan error, 1)
	go func() {
		_, err := s.w.Write(p)
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			return 0, err
		}
		return len(p), nil
	case <-s.ctx.Done():
		return 0, context.Cause(s.ctx)
	}
}
