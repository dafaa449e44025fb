// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"strconv"

	"github.com/spf13/pflag"

	"github.com/imgbackup/imgbackup/retention"
)

// addRules adds the flags of rules about what stays, and returns their names.
func addRules(f *pflag.FlagSet, r *retention.Rules) []string {
	var names []string
	number := func(n *int, name, usage string) {
		f.Var((*keepNumber)(n), name, usage)
		names = append(names, name)
	}
	within := func(d *retention.Duration, name, usage string) {
		f.Var((*keepWithin)(d), name, usage)
		names = append(names, name)
	}
	number(&r.Last, "keep-last", "keep the newest `N`")
	number(&r.Hourly, "keep-hourly", "keep the newest of each of the last `N` hours that have any")
	number(&r.Daily, "keep-daily", "likewise of `N` days")
	number(&r.Weekly, "keep-weekly", "likewise of `N` ISO weeks")
	number(&r.Monthly, "keep-monthly", "likewise of `N` months")
	number(&r.Yearly, "keep-yearly", "likewise of `N` years")
	within(&r.Within, "keep-within", "keep all that are at most this `TIME` older than the newest: 30d, 1y6m, 12h")
	within(&r.WithinHourly, "keep-within-hourly", "keep the newest of each hour of that `TIME`")
	within(&r.WithinDaily, "keep-within-daily", "the newest of each day of that `TIME`")
	within(&r.WithinWeekly, "keep-within-weekly", "the newest of each ISO week of that `TIME`")
	within(&r.WithinMonthly, "keep-within-monthly", "the newest of each month of that `TIME`")
	within(&r.WithinYearly, "keep-within-yearly", "the newest of each year of that `TIME`")
	number(&r.Drilled, "keep-drilled", "keep the newest `N` of which a drill passed")
	f.StringArrayVar(&r.Tags, "keep-tag", nil, "keep all that have this `TAG`; may be repeated")
	return append(names, "keep-tag")
}

// keepNumber is a number of checkpoints or periods as a flag.
type keepNumber int

// unlimitedWord is the number of all.
const unlimitedWord = "unlimited"

func (n *keepNumber) Type() string { return "number" }

func (n *keepNumber) String() string {
	if int(*n) == retention.Unlimited {
		return unlimitedWord
	}
	return strconv.Itoa(int(*n))
}

func (n *keepNumber) Set(s string) error {
	if s == unlimitedWord {
		*n = retention.Unlimited
		return nil
	}
	v, err := strconv.Atoi(s)
	if err != nil || v < 0 {
		return errors.New("want a number, or " + unlimitedWord)
	}
	*n = keepNumber(v)
	return nil
}

// keepWithin is how far back checkpoints stay, as a flag.
type keepWithin retention.Duration

func (d *keepWithin) Type() string   { return "time" }
func (d *keepWithin) String() string { return retention.Duration(*d).String() }

func (d *keepWithin) Set(s string) error {
	v, err := retention.ParseDuration(s)
	*d = keepWithin(v)
	return err
}
