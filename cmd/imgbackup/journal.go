// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
	slogjournal "github.com/systemd/slog-journal"
)

// newJournal returns a log into systemd's journal, where that is what stderr leads to: then
// what is said has fields that journalctl can look for. Else, and where the journal can't be
// had, it is nil.
func newJournal() *slog.Logger {
	if is, err := journal.StderrIsJournalStream(); err != nil || !is {
		return nil
	}
	h, err := slogjournal.NewHandler(&slogjournal.Options{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		a.Key = "IMGBACKUP_" + strings.ToUpper(a.Key) // others' fields have such names, too
		return a
	}})
	if err != nil {
		return nil
	}
	return slog.New(h)
}

// toJournal reports whether a message has got into the journal.
func (p program) toJournal(level slog.Level, text string) bool {
	if p.journal == nil {
		return false
	}
	return p.journal.Handler().Handle(context.Background(), slog.NewRecord(time.Now(), level, text, 0)) == nil
}
