// SPDX-License-Identifier: Apache-2.0

package jobs

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"
)

// logFile is the log of a run: lines of several steps, each whole and with its time.
// What cannot be written is remembered, and stops nothing.
type logFile struct {
	mu      sync.Mutex
	f       *os.File // nil: there is none
	now     func() time.Time
	err     error
	journal *slog.Logger // has all lines, too; nil: there is none
}

func openLog(path string, now func() time.Time) *logFile {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	return &logFile{f: f, now: now, err: err}
}

// line writes a line about what a step, or a program, does for a domain, which may be empty.
func (l *logFile) line(what, domain, text string, attrs ...slog.Attr) {
	l.to(slog.LevelInfo, what, domain, text, attrs...)
}

// to is line of a level, which only the journal has.
func (l *logFile) to(level slog.Level, what, domain, text string, attrs ...slog.Attr) {
	who := what
	attrs = append(attrs, slog.String("step", what))
	if domain != "" {
		who += " " + domain
		attrs = append(attrs, slog.String("domain", domain))
	}
	if l.journal != nil {
		l.journal.LogAttrs(context.Background(), level, who+": "+text, attrs...)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil || l.err != nil {
		return
	}
	_, l.err = fmt.Fprintf(l.f, "%s %s: %s\n", l.now().UTC().Format(time.RFC3339), who, text)
}

// close ends the log, and returns what went wrong with it.
func (l *logFile) close() error {
	if l.f == nil {
		return l.err
	}
	err := l.f.Sync()
	if cerr := l.f.Close(); err == nil {
		err = cerr
	}
	if l.err != nil {
		return l.err
	}
	return err
}

// maxLine is where a line that does not end is cut, bytes.
const maxLine = 16 << 10

// lines hands what is written to it on, line by line. last is the last error of this
// program, or else the last line that was not empty.
type lines struct {
	each func(line string)
	last string
	ours bool
	rest []byte
}

func (w *lines) Write(p []byte) (int, error) {
	w.rest = append(w.rest, p...)
	for {
		i := bytes.IndexAny(w.rest, "\n\r")
		if i < 0 && len(w.rest) < maxLine {
			return len(p), nil
		}
		if i < 0 {
			i = maxLine - 1
		}
		w.give(w.rest[:i])
		w.rest = w.rest[i+1:]
	}
}

func (w *lines) flush() {
	w.give(w.rest)
	w.rest = nil
}

func (w *lines) give(line []byte) {
	if text := string(bytes.TrimRight(line, " ")); text != "" {
		message, ours := strings.CutPrefix(text, "imgbackup: ")
		if note := ours && strings.HasPrefix(message, "note: "); !note && (ours || !w.ours) {
			w.last, w.ours = message, ours
		}
		w.each(text)
	}
}
