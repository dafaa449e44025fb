// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/chain/lock"
	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/objstore"
	"github.com/imgbackup/imgbackup/retention"
)

// lockFlags are those of init by which the store keeps what is stored.
type lockFlags struct{ mode, period string }

// defaultLock is how long no checkpoint can be removed, where it is not said.
const defaultLock = "30d"

func (l *lockFlags) add(f *pflag.FlagSet) {
	f.StringVar(&l.mode, "object-lock", "", "`MODE`: compliance (nobody can remove what checkpoints need before its time) or\ngovernance (only who has a special right can); the bucket must have object lock")
	f.StringVar(&l.period, "lock-for", "", "with --object-lock: for this `TIME` from when it was made no checkpoint can be\nremoved, in days, as 30d (default "+defaultLock+")")
}

// lock is what they ask for; nil: nothing.
func (l *lockFlags) lock() (*chain.ObjectLock, error) {
	if l.mode == "" {
		if l.period != "" {
			return nil, usage.Errorf("--lock-for goes with --object-lock compliance or governance")
		}
		return nil, nil
	}
	if _, err := objstore.ParseRetention(l.mode); err != nil {
		return nil, usage.Errorf("--object-lock: %w", err)
	}
	period := l.period
	if period == "" {
		period = defaultLock
	}
	d, err := retention.ParseDuration(period)
	if err != nil {
		return nil, usage.Errorf("--lock-for: %w", err)
	}
	if d != (retention.Duration{Days: d.Days}) || d.Days > chain.MaxLockDays {
		return nil, usage.Errorf("--lock-for %s: in days, or weeks, at most %dd", period, chain.MaxLockDays)
	}
	return &chain.ObjectLock{Mode: l.mode, Days: d.Days}, nil
}

func (a *app) lockCommand() *cobra.Command {
	var o lock.Options
	var status bool
	cmd := &cobra.Command{
		Use:        "lock [--all | --status]",
		Short:      "Keep on what checkpoints need from being removed, in a bucket with object lock",
		SuggestFor: []string{"extend", "retain", "worm", "immutable"},
		Long: `lock keeps what checkpoints need that are younger than the repository's period (init --lock-for):
the bucket's own rule does so for what is stored, and lock has the time extended of what older
objects are still needed. It is to run every day, with credentials that may set retention, which
hosts need not have. Each object's turn comes once in a third of the period, and not more than
a week may pass between two runs. It tells where something was put on top of what is needed.
prune does the same when it is done, where it has the right to. --status tells when it was done last,
and when it has to be done next.`,
		Annotations: exits(exitDamage, exitInterrupted),
		Example: `  imgbackup init -r s3://vm-backups/site1 --object-lock compliance --lock-for 30d
  imgbackup lock -r s3://vm-backups/site1`,
		Args: takes(cobra.NoArgs, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if status && o.All {
				return usage.Errorf("--status and --all exclude each other")
			}
			if status {
				return a.lockStatus(cmd.Context())
			}
			return a.lock(cmd.Context(), o)
		},
	}
	cmd.Flags().BoolVar(&o.All, "all", false, "extend the time of all that is needed, not only of what is due")
	cmd.Flags().BoolVar(&status, "status", false, "tell when that was last done, and whether it is overdue")
	return a.addProgress(cmd)
}

// lockStatusJSON is what lock --status --json prints.
type lockStatusJSON struct {
	Mode    string     `json:"mode"`
	Days    int        `json:"days"`
	Last    *time.Time `json:"last"`    // null: nobody knows of any
	Due     *time.Time `json:"due"`     // the next run, at the latest
	Overdue bool       `json:"overdue"` // checkpoints may not be kept as long as was promised
}

func viewLockStatus(ctx context.Context, repo *chain.Repository) (*lockStatusJSON, error) {
	rule := repo.Config.ObjectLock
	if rule == nil {
		return nil, errors.New("this repository was made without --object-lock: nothing keeps its objects")
	}
	last, err := repo.LastLocked(ctx)
	if err != nil {
		return nil, err
	}
	s := &lockStatusJSON{Mode: rule.Mode, Days: rule.Days}
	from := repo.Config.Created // till when what hosts store is kept by the bucket's rule alone
	if !last.IsZero() && !last.After(time.Now()) {
		s.Last, from = &last, last
	}
	due := from.AddDate(0, 0, chain.LockGap)
	s.Due, s.Overdue = &due, time.Now().After(due)
	return s, nil
}

func (a *app) lockStatus(ctx context.Context) error {
	repo, err := a.openRepo(ctx)
	if err == nil {
		err = a.restrict(confine.Self{}, writes(repo))
	}
	if err != nil {
		return err
	}
	s, err := viewLockStatus(ctx, repo)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(s)
	}
	w := &checkedWriter{w: a.out}
	w.printf("no checkpoint can be removed for %s (%s)\n", count(s.Days, "day"), s.Mode)
	if s.Last == nil {
		w.printf("lock has not run yet, as far as is known")
	} else {
		w.printf("lock ran last on %s", shortTime(*s.Last))
	}
	if s.Overdue {
		w.printf("; it is OVERDUE since %s: older objects may not be kept as long as checkpoints need them\n", shortTime(*s.Due))
	} else {
		w.printf("; it has to run again until %s\n", shortTime(*s.Due))
	}
	return w.err
}

// lockAfter keeps on what is needed, as part of other work, where the store lets us.
func (a *app) lockAfter(ctx context.Context, repo *chain.Repository) error {
	if repo.Config.ObjectLock == nil {
		return nil
	}
	r, err := lock.Run(ctx, repo, lock.Options{})
	if errors.Is(err, fs.ErrPermission) {
		a.note("what checkpoints need was not kept on, which takes the right to set retention (imgbackup lock): " + oneLine(err.Error()))
		return nil
	}
	if r != nil {
		a.noteCovered(r)
		a.detail(fmt.Sprintf("object lock: %s within the period need %s; extended: %d", count(r.Checkpoints, "checkpoint"), count(r.Needed, "object"), r.Extended))
	}
	return lockError(err)
}

// lockedJSON is what lock --json prints.
type lockedJSON struct {
	Checkpoints int           `json:"checkpoints"`
	Objects     int           `json:"objects"`
	Extended    int           `json:"extended"`
	Until       time.Time     `json:"until"`
	Covered     []coveredJSON `json:"covered"`
}

type coveredJSON struct {
	Key     string `json:"key"`
	Version string `json:"version"`
}

func (a *app) lock(ctx context.Context, o lock.Options) error {
	repo, err := a.openRepo(ctx)
	if err == nil {
		err = a.restrict(confine.Self{}, writes(repo))
	}
	if err != nil {
		return err
	}
	bar := a.newBar("locking")
	o.Progress = func(done, total int64) {
		bar.set(done, total)
		a.events.set("locking", done, total)
	}
	r, err := lock.Run(ctx, repo, o)
	bar.clear()
	if r != nil {
		err = errors.Join(a.printLocked(r), err)
	}
	return lockError(err)
}

func lockError(err error) error {
	if errors.As(err, new(*lock.MissingError)) || chain.Unusable(err) {
		return damageFound{err}
	}
	return err
}

func (a *app) noteCovered(r *lock.Result) {
	for _, c := range r.Covered {
		a.note("something lies on top of " + c.Key + ": the version that is needed is " + c.ID)
	}
}

func (a *app) printLocked(r *lock.Result) error {
	a.noteCovered(r)
	if a.json {
		j := lockedJSON{Checkpoints: r.Checkpoints, Objects: r.Needed, Extended: r.Extended, Until: r.Until, Covered: []coveredJSON{}}
		for _, c := range r.Covered {
			j.Covered = append(j.Covered, coveredJSON{c.Key, c.ID})
		}
		return a.printJSON(j)
	}
	w := &checkedWriter{w: a.out}
	w.printf("%s within the period need %s; extended: %d, until %s\n",
		count(r.Checkpoints, "checkpoint"), count(r.Needed, "object"), r.Extended, r.Until.Format(time.DateOnly))
	return w.err
}
