// SPDX-License-Identifier: Apache-2.0

package guestfs

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoFile says that there is nothing of that name in the guest.
var ErrNoFile = errors.New("there is no such file in the guest")

// Info is a file, folder or whatever has a name in the guest.
type Info struct {
	Mode     uint32 // as in stat(2), with the type
	Size     int64  // bytes
	Taken    int64  // bytes that it takes on its disk, about
	Modified time.Time
	Changed  time.Time // of the inode
	UID, GID int64
	Inode    int64
	Links    int64 // names that it has
}

// Type is what it is, as in stat(2).
func (i *Info) Type() uint32 { return i.Mode & unix.S_IFMT }

// Dir reports whether it is a folder, Regular whether it is a plain file, Symlink whether
// it is a symbolic link.
func (i *Info) Dir() bool     { return i.Mode&unix.S_IFMT == unix.S_IFDIR }
func (i *Info) Regular() bool { return i.Mode&unix.S_IFMT == unix.S_IFREG }
func (i *Info) Symlink() bool { return i.Mode&unix.S_IFMT == unix.S_IFLNK }

// Stat is about a path among what is mounted, symbolic links followed, as they lead in
// the guest. Nothing there is [ErrNoFile].
func (s *Session) Stat(ctx context.Context, path string) (*Info, error) {
	return s.stat(ctx, "statns", path)
}

// Lstat is [Session.Stat] of the name itself, if that is a symbolic link.
func (s *Session) Lstat(ctx context.Context, path string) (*Info, error) {
	return s.stat(ctx, "lstatns", path)
}

func (s *Session) stat(ctx context.Context, call, path string) (*Info, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	fields, err := s.fields(ctx, call, path)
	if err != nil {
		return nil, s.absent(path, err)
	}
	n := func(name string) int64 {
		var v int64
		if err == nil {
			v, err = strconv.ParseInt(fields[name], 10, 64)
		}
		return v
	}
	i := &Info{Mode: uint32(n("st_mode")), Size: n("st_size"), Taken: n("st_blocks") << 9, UID: n("st_uid"), GID: n("st_gid"), Inode: n("st_ino"), Links: n("st_nlink"),
		Modified: time.Unix(n("st_mtime_sec"), n("st_mtime_nsec")).UTC(), Changed: time.Unix(n("st_ctime_sec"), n("st_ctime_nsec")).UTC()}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return i, nil
}

// absent is the error of a call on a path.
func (s *Session) absent(path string, err error) error {
	var no *CallError
	if errors.As(err, &no) && strings.HasSuffix(no.Said, "No such file or directory") { // the C library's words
		return fmt.Errorf("%s: %w", path, ErrNoFile)
	}
	return fmt.Errorf("%s: %w", path, err)
}

// Checksum is the SHA-256 of a file's content, in hexadecimal digits, worked out in the
// appliance.
func (s *Session) Checksum(ctx context.Context, path string) (string, error) {
	if err := checkPath(path); err != nil {
		return "", err
	}
	sum, err := s.text(ctx, "checksum", "sha256", path)
	if err != nil {
		return "", s.absent(path, err)
	}
	if len(sum) != 64 || strings.Trim(sum, "0123456789abcdef") != "" {
		return "", fmt.Errorf("%s: libguestfs says that its SHA-256 is %.80q", path, sum)
	}
	return sum, nil
}

// readPiece is how much of a file is asked for at once, bytes; a message of the
// appliance has at most 4 MiB.
const readPiece = 1 << 20

// ReadFile copies the content of a file to w, from the offset on, at most limit bytes,
// and returns how many it had.
func (s *Session) ReadFile(ctx context.Context, path string, w io.Writer, off, limit int64) (n int64, err error) {
	if err := checkPath(path); err != nil {
		return 0, err
	}
	for n < limit {
		want := min(readPiece, limit-n)
		b, err := s.call(ctx, "pread", path, strconv.FormatInt(want, 10), strconv.FormatInt(off+n, 10))
		if err != nil {
			return n, s.absent(path, err)
		}
		if int64(len(b)) > want {
			return n, fmt.Errorf("%s: libguestfs gave %d bytes for %d", path, len(b), want)
		}
		if _, err := w.Write(b); err != nil {
			return n, err
		}
		n += int64(len(b))
		if int64(len(b)) < want {
			return n, nil
		}
	}
	return n, nil
}

// Newest is the time of the newest modification of a file, or of any plain file in a
// folder and what lies in that, within one file system, and which it was. Files of a folder
// that are newer than last are left out. Times are the guest's, to the second.
func (s *Session) Newest(ctx context.Context, path string, last time.Time) (at time.Time, which string, err error) {
	i, err := s.Stat(ctx, path)
	if err != nil || !i.Dir() {
		return modified(i), path, err
	}
	real, err := s.text(ctx, "realpath", path)
	if err != nil {
		return at, "", s.absent(path, err)
	}
	// The shell that lists the folder is the appliance's; what is mounted is in /sysroot.
	where := "'" + strings.ReplaceAll("/sysroot"+real, "'", `'\''`) + "'"
	text, err := s.shell(ctx, "find "+where+fmt.Sprintf(" -xdev -type f ! -newermt @%d", last.Unix())+` -printf '%T@ %P\0' | LC_ALL=C sort -z -n -r | head -z -n 1 | head -c 4000 | tr '\0\n' '  '`)
	if err != nil {
		return at, "", fmt.Errorf("%s: %w", path, err)
	}
	seconds, name, ok := strings.Cut(strings.TrimRight(text, " "), " ")
	if !ok {
		return i.Modified, path, nil // no file in it: the folder's own time
	}
	whole, _, _ := strings.Cut(seconds, ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return at, "", fmt.Errorf("%s: libguestfs gives the time %.40q", path, seconds)
	}
	return time.Unix(sec, 0).UTC(), strings.TrimSuffix(path, "/") + "/" + name, nil
}

// shell runs a script of the appliance's shell. On its way through guestfish and the
// appliance quotes are lost, so that it goes in letters that need none.
func (s *Session) shell(ctx context.Context, script string) (string, error) {
	return s.text(ctx, "debug", "sh", "echo "+base64.StdEncoding.EncodeToString([]byte(script))+" | base64 -d | sh")
}

func modified(i *Info) (at time.Time) {
	if i != nil {
		at = i.Modified
	}
	return at
}
