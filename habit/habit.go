// SPDX-License-Identifier: Apache-2.0

// Package habit says when what a backup found is unlike what the backups of that disk
// find: most of it written anew, with data that does not compress, as by a program that
// encrypts it to be paid for the key; or nothing at all for weeks, as when a bitmap notes
// no writes. It is arithmetic on a few numbers, and knows no disk.
package habit

import (
	"fmt"
	"math"
	"time"
)

// Found is what one backup of a disk found.
type Found struct {
	Time   time.Time
	Full   bool
	Data   int64 // of the guest: of a full all its data, else what changed
	New    int64 // of Data: what the repository did not have
	Stored int64 // what New takes there, compressed
	Zeros  bool  // zeros were found where there was data
}

// Habit sums up what the backups of a disk found. It is stored in manifests, so that one
// manifest is enough to judge by. The zero value is that of a disk without any.
//
// New and Stored fade: each backup leaves 15/16 of what they were. So does Largest, of
// which each leaves 31/32.
type Habit struct {
	Backups int64 `json:"backups"`           // that it sums up
	Held    int64 `json:"held_bytes"`        // the data of the newest full, or the largest change since, if that is more
	Largest int64 `json:"largest_new_bytes"` // the largest New beside that of the first backup
	New     int64 `json:"new_bytes"`
	Stored  int64 `json:"stored_bytes"`
	Busy    int64 `json:"changing_backups"` // of the backups, those that found a change
	Quiet   int64 `json:"quiet_backups"`    // the newest backups, as far as they found none
	// LastChange is the time of the newest backup that found a change; zero: none did.
	LastChange time.Time `json:"last_change,omitzero"`
}

// After is the habit with one more backup.
func (h Habit) After(f Found) Habit {
	h.New = h.New - h.New/16 + f.New
	h.Stored = h.Stored - h.Stored/16 + f.Stored
	if f.Full {
		h.Held = f.Data
	}
	h.Held = max(h.Held, f.New)
	if h.Largest -= h.Largest / 32; h.Backups > 0 {
		h.Largest = max(h.Largest, f.New)
	}
	h.Backups++
	if h.Quiet++; f.changed() {
		h.Busy, h.Quiet, h.LastChange = h.Busy+1, 0, f.Time
	}
	return h
}

func (f *Found) changed() bool { return f.Zeros || f.Data > 0 && (!f.Full || f.New > 0) }

// Check returns an error that says why a habit that was read can't be one.
func (h *Habit) Check() error {
	for _, n := range []int64{h.Backups, h.Held, h.Largest, h.New, h.Stored, h.Busy, h.Quiet} {
		if n < 0 || n > maxNumber {
			return fmt.Errorf("a number of %d", n)
		}
	}
	if h.Busy+h.Quiet > h.Backups {
		return fmt.Errorf("%d of %d backups found changes, and the newest %d none", h.Busy, h.Backups, h.Quiet)
	}
	return nil
}

// maxNumber leaves room for what a fading sum of disks of 8 EiB can't reach.
const maxNumber = 1 << 62

// Limits say what is unusual. A field that is zero has its value from [DefaultLimits].
type Limits struct {
	Share float64       // of the disk's data that is written anew
	Times float64       // as often as the largest change before
	Ratio float64       // of stored to new bytes: from here on data does not compress
	Quiet time.Duration // without a change
}

// Never is a time without a change that no disk has.
const Never = math.MaxInt64

// DefaultLimits are the limits if nobody says otherwise.
func DefaultLimits() Limits {
	return Limits{Share: 0.25, Times: 2, Ratio: 0.9, Quiet: 14 * 24 * time.Hour}
}

// The kinds of findings.
const (
	Rewritten = "rewritten" // much was written anew, with data that does not compress
	Quiet     = "quiet"     // nothing has changed for long
)

// Codes are the kinds of findings.
func Codes() []string { return []string{Rewritten, Quiet} }

// Finding is something unusual.
type Finding struct {
	Code string `json:"code"`
	Text string `json:"text"`
}

const (
	fewBackups = 3        // a habit of fewer is none
	smallNew   = 16 << 20 // bytes; less is never unusual
	// compresses is a ratio up to which a disk's data is said to compress by habit; where
	// it does not, twice the share must have been written anew.
	compresses   = 0.8
	quietBackups = 5
	busyShare    = 0.8 // of the backups before the quiet ones
)

// Judge says what is unusual in what a backup found, after the habit that the disk had
// before.
func (l Limits) Judge(before Habit, f Found) []Finding {
	l = l.orDefault()
	var all []Finding
	if text := l.rewritten(before, f); text != "" {
		all = append(all, Finding{Rewritten, text})
	}
	if text := l.quiet(before.After(f), f); text != "" {
		all = append(all, Finding{Quiet, text})
	}
	return all
}

func (l Limits) orDefault() Limits {
	d := DefaultLimits()
	if l.Share == 0 {
		l.Share = d.Share
	}
	if l.Times == 0 {
		l.Times = d.Times
	}
	if l.Ratio == 0 {
		l.Ratio = d.Ratio
	}
	if l.Quiet == 0 {
		l.Quiet = d.Quiet
	}
	return l
}

func (l Limits) rewritten(h Habit, f Found) string {
	if h.Backups < fewBackups || f.New < smallNew || h.Held == 0 {
		return ""
	}
	share, ratio := portion(f.New, h.Held), portion(f.Stored, f.New)
	needed := l.Share
	if portion(h.Stored, h.New) > compresses {
		needed *= 2
	}
	if share < needed || ratio < l.Ratio || float64(f.New) < l.Times*float64(h.Largest) {
		return ""
	}
	return fmt.Sprintf("%d%% of the disk's data was written anew, with data that does not compress (to %d%%, where what changed before took %d%%), "+
		"and the largest change before was %d%%: so it looks when files are encrypted to be paid for",
		percent(share), percent(ratio), percent(portion(h.Stored, h.New)), percent(portion(h.Largest, h.Held)))
}

// quiet judges by the habit with the backup itself.
func (l Limits) quiet(h Habit, f Found) string {
	if h.Quiet < quietBackups || h.LastChange.IsZero() || f.Time.Sub(h.LastChange) < l.Quiet {
		return ""
	}
	if before := h.Backups - h.Quiet; h.Busy < quietBackups || portion(h.Busy, before) < busyShare {
		return ""
	}
	return fmt.Sprintf("%d backups since %s found no change, and nearly each one before did: if the machine has run since, find out why ('backup --audit' reads everything)",
		h.Quiet, h.LastChange.UTC().Format(time.DateOnly))
}

// portion is a/b, which may be more than 1; 0 where b is 0.
func portion(a, b int64) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}

func percent(portion float64) int { return int(min(portion, 100)*100 + 0.5) }
