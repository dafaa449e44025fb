// SPDX-License-Identifier: Apache-2.0

// Package doctor looks at what a host needs for backups, restores and drills, and says what
// to do about what is wrong.
//
// Invariants:
//
//   - Nothing is changed: what is tried of a file system is tried with files that have no name, and of a
//     repository only what reading it asks for.
//   - Each [Check] has a bounded time. One that hangs, as on a file server that is gone, fails, and keeps
//     none of the others waiting.
//   - What could not be looked at is never ok.
package doctor

import (
	"context"
	"fmt"
	"time"
)

// Level is how something is.
type Level int

// The levels.
const (
	OK      Level = iota
	Warning       // it works, but slower, less safely, or not all of it
	Failed        // it does not work
)

func (l Level) String() string { return [...]string{"ok", "warning", "failed"}[l] }

// MarshalText implements [encoding.TextMarshaler].
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// Finding is what was found of one thing.
type Finding struct {
	Check  string `json:"check"` // what was looked at
	Level  Level  `json:"level"`
	Text   string `json:"text"`             // one sentence
	Advice string `json:"advice,omitempty"` // what to do; there is one wherever the level is not OK
}

// Check looks at one thing.
type Check struct {
	Name string
	Look func(ctx context.Context) []Finding // which need no Check
}

func ok(format string, args ...any) Finding { return Finding{Text: fmt.Sprintf(format, args...)} }

func warning(advice, format string, args ...any) Finding {
	return Finding{Level: Warning, Text: fmt.Sprintf(format, args...), Advice: advice}
}

func failed(advice, format string, args ...any) Finding {
	return Finding{Level: Failed, Text: fmt.Sprintf(format, args...), Advice: advice}
}

// Run looks at everything, side by side, and returns what was found in the order of the checks. One that
// has not ended after patience has failed; what it waits for is left to end by itself.
func Run(ctx context.Context, checks []Check, patience time.Duration) (all []Finding) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	found := make([]chan []Finding, len(checks))
	for i, c := range checks {
		found[i] = make(chan []Finding, 1)
		go func() { found[i] <- c.Look(ctx) }()
	}
	for i, c := range checks {
		var these []Finding
		select {
		case these = <-found[i]:
		case <-ctx.Done():
			select {
			case these = <-found[i]:
			case <-time.After(grace):
				these = []Finding{failed("see whether a file server or another part of this host hangs", "there is no answer after %s", patience)}
			}
		}
		for _, f := range these {
			f.Check = c.Name
			all = append(all, f)
		}
	}
	return all
}

// grace is how long who was told to end may take to say so.
const grace = time.Second

// Worst is the highest level of all findings.
func Worst(all []Finding) (l Level) {
	for _, f := range all {
		l = max(l, f.Level)
	}
	return l
}
