// SPDX-License-Identifier: Apache-2.0

package guestfs

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
)

// sysroot is where the appliance has what is mounted.
const sysroot = "/sysroot"

// Download copies the content of a file to w as it comes.
func (s *Session) Download(ctx context.Context, path string, w io.Writer) error {
	if err := checkPath(path); err != nil {
		return err
	}
	if _, err := s.callTo(ctx, w, "download", path, "-"); err != nil {
		return s.absent(path, err)
	}
	return nil
}

// RealPath is where a path leads to in the guest, without symbolic links.
func (s *Session) RealPath(ctx context.Context, path string) (string, error) {
	if err := checkPath(path); err != nil {
		return "", err
	}
	out, err := s.call(ctx, "realpath", path)
	if err != nil {
		return "", s.absent(path, err)
	}
	real := strings.TrimSuffix(string(out), "\n")
	if err := checkPath(real); err != nil {
		return "", fmt.Errorf("%.80q: libguestfs: it leads to %w", path, err)
	}
	return real, nil
}

// ReadLink is where a symbolic link leads to, as the guest has it.
func (s *Session) ReadLink(ctx context.Context, path string) (string, error) {
	if err := checkPath(path); err != nil {
		return "", err
	}
	out, err := s.call(ctx, "readlink", path)
	if err != nil {
		return "", s.absent(path, err)
	}
	return strings.TrimSuffix(string(out), "\n"), nil
}

// pipe runs a script of the appliance's shell, and passes on what it writes as it comes,
// however much that is. A script that fails is a [CallError] with what it said, by name.
//
// A script's own output would have to be one message. So it goes into a pipe, and comes
// out of that by a call which reads a file, in letters.
func (s *Session) pipe(ctx context.Context, name, script string, w io.Writer) error {
	s.pipes++
	at := fmt.Sprintf("/tmp/imgbackup-%d.", s.pipes)
	begin := `mkfifo ` + at + `out || exit
(exec >` + at + `out; ( ` + script + ` ) 2>` + at + `said; echo $? >` + at + `status) </dev/null >/dev/null 2>&1 &
true`
	if _, err := s.shell(ctx, begin); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	letters := &unlettered{to: w}
	_, err := s.callTo(ctx, letters, "base64-out", "/.."+at+"out", "-")
	if err == nil {
		err = letters.end()
	}
	if err != nil && !errors.As(err, new(*CallError)) {
		return fmt.Errorf("%s: %w", name, err)
	}
	said, serr := s.shell(ctx, `cat `+at+`status; head -c 2000 `+at+`said; rm -f `+at+`out `+at+`status `+at+`said`)
	if err = errors.Join(err, serr); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	status, text, _ := strings.Cut(said, "\n")
	if status != "0" {
		text = strings.ReplaceAll(strings.ReplaceAll(strings.TrimSpace(text), sysroot, ""), "\n", "; ")
		return &CallError{Command: name, Said: fmt.Sprintf("status %.8s: %s", status, text)}
	}
	return nil
}

// unlettered writes the bytes that base64 has made letters of.
type unlettered struct {
	to   io.Writer
	left []byte // letters that are no whole group yet
	out  []byte
	over bool // there was padding: nothing may come any more
}

var errLetters = errors.New("libguestfs gives letters that are no base64")

func (u *unlettered) Write(p []byte) (int, error) {
	for _, c := range p {
		if c != '\n' {
			u.left = append(u.left, c)
		}
	}
	whole := len(u.left) &^ 3
	if whole == 0 {
		return len(p), nil
	}
	if u.over {
		return 0, errLetters
	}
	u.over = u.left[whole-1] == '='
	var err error
	if u.out, err = base64.StdEncoding.AppendDecode(u.out[:0], u.left[:whole]); err != nil {
		return 0, errLetters
	}
	u.left = append(u.left[:0], u.left[whole:]...)
	if _, err := u.to.Write(u.out); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (u *unlettered) end() error {
	if len(u.left) > 0 {
		return errLetters
	}
	return nil
}

// inSysroot is a path of the guest as a word of the appliance's shell.
func inSysroot(path string) string { return shellQuote(sysroot + path) }
