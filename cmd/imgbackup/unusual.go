// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/drill/plan"
	"github.com/imgbackup/imgbackup/habit"
	"github.com/imgbackup/imgbackup/internal/usage"
)

// unusualManual explains the flag that [addUnusual] adds.
const unusualManual = `Each backup is compared with those of the same disk before it, and what is unlike them is called out; the
backup is made all the same, and the exit status stays. rewritten: at least share of the disk's data (25%) is new
to the repository, at least times as much (2) as in any backup of late, and it does not compress: what is stored of
it is at least ratio of its size (90%). A disk whose data never compressed much must have twice the share. So a
machine looks after its files were encrypted for ransom. quiet: for the time quiet (14d), in at least five backups,
nothing has changed, where at least four of five backups before found something: the machine is off, or dead, or
the bitmap does not note what it writes. --unusual share=40%,quiet=30d sets other limits; share=never and
quiet=never look for neither.`

// unusualFlag is the value of --unusual.
type unusualFlag habit.Limits

func addUnusual(f *pflag.FlagSet, limits *habit.Limits) {
	*limits = habit.DefaultLimits()
	f.Var((*unusualFlag)(limits), "unusual", "what is called unusual: `KEY=VALUE`,… of share, times, ratio, quiet (man page)")
}

func (*unusualFlag) Type() string { return "limits" }

func (*unusualFlag) String() string { return "" }

func (u *unusualFlag) Set(s string) error {
	for part := range strings.SplitSeq(s, ",") {
		key, value, _ := strings.Cut(part, "=")
		var err error
		switch key {
		case "share":
			u.Share, err = parsePortion(value, never)
		case "ratio":
			u.Ratio, err = parsePortion(value, 0)
		case "times":
			if u.Times, err = strconv.ParseFloat(value, 64); err == nil && !(u.Times >= 1 && u.Times <= 1000) { // nor is it NaN
				err = strconv.ErrRange
			}
		case "quiet":
			if u.Quiet = habit.Never; value != neverWord {
				u.Quiet, err = plan.ParseDuration(value)
				u.Quiet = max(u.Quiet, 1) // 0 is the default
			}
		default:
			return usage.Errorf("%.40q: want share=25%%, times=2, ratio=90%% or quiet=14d", part)
		}
		if err != nil {
			return usage.Errorf("%.40q: want share=25%%, times=2, ratio=90%% or quiet=14d", part)
		}
	}
	return nil
}

const (
	neverWord = "never"
	never     = 1e18 // a share that no disk has
)

// parsePortion parses a percentage above 0; "never" is the number ifNever, unless that is 0.
func parsePortion(s string, ifNever float64) (float64, error) {
	if s == neverWord && ifNever > 0 {
		return ifNever, nil
	}
	digits, ok := strings.CutSuffix(s, "%")
	n, err := strconv.ParseFloat(digits, 64)
	if !ok || err != nil || !(n > 0 && n <= 100) {
		return 0, strconv.ErrSyntax
	}
	return n / 100, nil
}

// printUnusual tells what is unlike the backups before.
func printUnusual(w *checkedWriter, m *chain.Manifest, limits habit.Limits) {
	for i := range m.Disks {
		for _, f := range m.Unusual(&m.Disks[i], limits) {
			w.printf("UNUSUAL %s: %s\n", m.Disks[i].Name, f.Text)
		}
	}
}
