// SPDX-License-Identifier: Apache-2.0

package guestfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Entry is something that has a name in the guest.
type Entry struct {
	Info
	// Path is that below what was listed, as the guest has it: any bytes but zero; empty:
	// it is what was listed itself.
	Path string
	Link string // where a symbolic link leads to, as the guest has it
}

// Listing is what [Session.List] lists.
type Listing struct {
	// Root is a path without symbolic links but its last part, which is not followed.
	Root   string
	Depth  int  // how deep at most: 1 is what lies in Root itself; 0: all
	Sorted bool // by path and "//", as bytes; else as they come, and at once
}

// List passes what Root is, and what lies in it if it is a folder, to each. Nothing is held in memory, here or there: there may be millions.
func (s *Session) List(ctx context.Context, l Listing, each func(*Entry) error) error {
	if err := checkPath(l.Root); err != nil {
		return err
	}
	script := "find " + inSysroot(l.Root)
	if l.Depth > 0 {
		script += fmt.Sprintf(" -maxdepth %d", l.Depth)
	}
	script += ` -printf '` + entryFormat + `'`
	if l.Sorted {
		// The exit status of find would be lost.
		script = `exec 3>&1; s=$({ { ` + script + `; echo $? >&4; } | LC_ALL=C sort -z -S 32M -T /tmp >&3; echo $? >&4; } 4>&1 | tr -d '\n'); [ "$s" = 00 ]`
	}
	records := &records{each: func(b []byte) error {
		e, err := parseEntry(b)
		if err != nil {
			return err
		}
		return each(e)
	}}
	err := s.pipe(ctx, "list", script, records)
	if err == nil && len(records.held) > 0 {
		err = errEntry(records.held)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", l.Root, err)
	}
	return nil
}

// entryFormat has all of an entry in one record that ends with a zero byte. Paths of find
// have no two slashes in a row, nor one at an end, so that two end a path.
const entryFormat = `%P//%y %m %U %G %s %T@ %C@ %i %n %b//%l\0`

// maxRecord bounds a record, bytes: a path may be longer than the kernel takes at once.
const maxRecord = 1 << 20

// records parts a stream at zero bytes.
type records struct {
	each func([]byte) error
	held []byte
}

var errRecord = errors.New("libguestfs: a name in the guest is too long")

func (r *records) Write(p []byte) (int, error) {
	n := len(p)
	for {
		i := bytes.IndexByte(p, 0)
		if i < 0 {
			r.held = append(r.held, p...)
			if len(r.held) > maxRecord {
				return 0, errRecord
			}
			return n, nil
		}
		one := p[:i]
		if len(r.held) > 0 {
			r.held = append(r.held, one...)
			one = r.held
		}
		if err := r.each(one); err != nil {
			return 0, err
		}
		r.held, p = r.held[:0], p[i+1:]
	}
}

// EachEntry passes entries that [FormatEntry] has written to each.
func EachEntry(r io.Reader, each func(*Entry) error) error {
	records := &records{each: func(b []byte) error {
		e, err := parseEntry(b)
		if err != nil {
			return err
		}
		return each(e)
	}}
	_, err := io.Copy(records, r)
	return err
}

// FormatEntry is an entry as [EachEntry] reads it.
func FormatEntry(e *Entry) []byte {
	var kind string
	for letter, k := range kinds {
		if k == e.Type() {
			kind = letter
		}
	}
	at := func(t time.Time) string { return fmt.Sprintf("%d.%09d0", t.Unix(), t.Nanosecond()) }
	return fmt.Appendf(nil, "%s//%s %o %d %d %d %s %s %d %d %d//%s\x00", e.Path, kind, e.Mode&0o7777, e.UID, e.GID, e.Size,
		at(e.Modified), at(e.Changed), uint64(e.Inode), e.Links, e.Taken>>9, e.Link)
}

func errEntry(b []byte) error {
	return fmt.Errorf("libguestfs: %.200q is no entry of a folder", b)
}

// kinds are the types of files by find's letters.
var kinds = map[string]uint32{
	"f": unix.S_IFREG, "d": unix.S_IFDIR, "l": unix.S_IFLNK, "p": unix.S_IFIFO, "s": unix.S_IFSOCK, "b": unix.S_IFBLK, "c": unix.S_IFCHR,
}

// parseEntry reads a record of entryFormat.
func parseEntry(b []byte) (*Entry, error) {
	i := bytes.Index(b, []byte("//"))
	if i < 0 {
		return nil, errEntry(b)
	}
	about, link, ok := strings.Cut(string(b[i+2:]), "//")
	f := strings.Split(about, " ")
	if !ok || len(f) != 10 {
		return nil, errEntry(b)
	}
	kind, known := kinds[f[0]]
	mode, err := strconv.ParseUint(f[1], 8, 12)
	e := &Entry{Path: string(b[:i]), Link: link}
	e.Mode = kind | uint32(mode)
	for at, to := range map[int]*int64{2: &e.UID, 3: &e.GID, 4: &e.Size, 7: &e.Inode, 8: &e.Links, 9: &e.Taken} {
		var perr error
		*to, perr = parseCount(f[at])
		err = errors.Join(err, perr)
	}
	for at, to := range map[int]*time.Time{5: &e.Modified, 6: &e.Changed} {
		var perr error
		*to, perr = parseTime(f[at])
		err = errors.Join(err, perr)
	}
	e.Taken <<= 9
	if err != nil || !known || strings.HasPrefix(e.Path, "/") {
		return nil, errEntry(b)
	}
	return e, nil
}

// parseCount reads a number that is not negative. An inode may have all of 64 bits.
func parseCount(text string) (int64, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	return int64(n), err
}

// parseTime reads seconds and their parts, of which find writes ten digits.
func parseTime(text string) (at time.Time, err error) {
	whole, part, _ := strings.Cut(text, ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return at, err
	}
	var ns uint64
	if part != "" {
		part = (part + "000000000")[:9]
		if ns, err = strconv.ParseUint(part, 10, 32); err != nil {
			return at, err
		}
	}
	return time.Unix(sec, int64(ns)).UTC(), nil
}
