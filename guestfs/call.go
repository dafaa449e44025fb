// SPDX-License-Identifier: Apache-2.0

package guestfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
)

// CallError is what the appliance says to a command that it could not do.
type CallError struct {
	Command string
	Said    string // of what it said, the beginning; text from outside
}

func (e *CallError) Error() string { return fmt.Sprintf("%s: %s", e.Command, e.Said) }

// call runs a command of guestfish and returns what it prints.
func (s *Session) call(ctx context.Context, name string, args ...string) ([]byte, error) {
	return s.callTo(ctx, nil, name, args...)
}

// callTo is call of a command whose output may be long: it goes to w as it comes.
func (s *Session) callTo(ctx context.Context, w io.Writer, name string, args ...string) ([]byte, error) {
	out, err := s.ask(ctx, w, name, args...)
	var failed *CallError
	if !errors.As(err, &failed) {
		return out, err
	}
	// Is it the disk's fault, or is there nobody any more who could answer?
	if name != "run" && name != "add-drive" {
		if _, ping := s.ask(ctx, nil, "ping-daemon"); ping != nil {
			return nil, fmt.Errorf("%w: %s", ErrEnded, failed.Error())
		}
	}
	return nil, err
}

// ask sends one command, and waits for both ends of its answer: guestfish prints the
// mark because it is told to, and complains of it because it knows no such command.
func (s *Session) ask(ctx context.Context, w io.Writer, name string, args ...string) ([]byte, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	var b strings.Builder
	b.WriteString("-" + name) // the dash: go on after an error
	for _, a := range args {
		b.WriteString(" " + quote(a))
	}
	fmt.Fprintf(&b, "\n-%s\necho %s\n", s.mark, s.mark)
	stop := context.AfterFunc(ctx, s.kill)
	defer stop()
	s.out.pass(w)
	defer s.out.pass(nil)
	if _, err := io.WriteString(s.in, b.String()); err != nil {
		return nil, s.gone(ctx)
	}
	out, ok := <-s.out.next
	if out.unsent != nil { // and nobody knows what comes next
		s.kill()
		return nil, out.unsent
	}
	said, ok2 := <-s.err.next
	switch {
	case out.tooLong || said.tooLong:
		s.kill()
		return nil, fmt.Errorf("%s: the answer has more than %d bytes", name, maxReply)
	case !ok || !ok2:
		return nil, s.gone(ctx)
	}
	if text := complaint(string(said.b)); text != "" {
		return nil, &CallError{Command: name, Said: text}
	}
	return out.b, nil
}

// gone is the error of a session that has ended.
func (s *Session) gone(ctx context.Context) error {
	s.kill()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return fmt.Errorf("%w: %s", ErrEnded, firstLine(s.err.rest()))
}

// complaint is what there is of an error in what guestfish says; empty: nothing.
func complaint(said string) string {
	var all []string
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(line)
		// *stdin*:LINE: libguestfs: error: COMMAND: …
		_, text, failed := strings.Cut(line, "libguestfs: error: ")
		if failed {
			line = text // which may tell of a warning of the program that has failed
		}
		if line != "" && !advice[line] && (failed || !strings.Contains(line, "warning: ")) {
			all = append(all, strings.TrimSuffix(line, "."))
		}
	}
	text := strings.Join(all, "; ")
	if len(text) > maxSaid {
		text = text[:maxSaid] + "…"
	}
	return printable(text)
}

// advice is what libguestfs adds to each error of an appliance that does not start, whatever is wrong.
var advice = map[string]bool{
	"This usually means the libguestfs appliance crashed.":                    true,
	"This usually means the libguestfs appliance failed to start or crashed.": true,
	"To see full error messages you may need to enable debugging.":            true,
	"Do:": true,
	"export LIBGUESTFS_DEBUG=1 LIBGUESTFS_TRACE=1":                           true,
	"and run the command again.  For further information, read:":             true,
	"http://libguestfs.org/guestfs-faq.1.html#debugging-libguestfs":          true,
	"You can also run 'libguestfs-test-tool' and post the *complete* output": true,
	"into a bug report or message to the libguestfs mailing list.":           true,
}

// maxSaid is the number of bytes of an error that are kept.
const maxSaid = 2 << 10

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return printable(line[:min(len(line), maxSaid)])
}

// printable has no bytes that do something to a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

// quote makes a word of guestfish's language that is just this text.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("/.:_-+=,@ ", c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, `\x%02x`, c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// lines is an answer that is a list.
func (s *Session) lines(ctx context.Context, name string, args ...string) ([]string, error) {
	out, err := s.call(ctx, name, args...)
	if err != nil {
		return nil, err
	}
	var all []string
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSuffix(line, "\n"); line != "" {
			all = append(all, printable(line))
		}
	}
	return all, nil
}

// text is an answer that is one line.
func (s *Session) text(ctx context.Context, name string, args ...string) (string, error) {
	out, err := s.call(ctx, name, args...)
	return printable(strings.TrimSuffix(string(out), "\n")), err
}

// fields is an answer of lines NAME: VALUE.
func (s *Session) fields(ctx context.Context, name string, args ...string) (map[string]string, error) {
	list, err := s.lines(ctx, name, args...)
	if err != nil {
		return nil, err
	}
	all := make(map[string]string)
	for _, line := range list {
		// A device may have colons in its name; its type has none.
		if i := strings.LastIndex(line, ": "); i >= 0 {
			all[line[:i]] = line[i+2:]
		}
	}
	return all, nil
}
