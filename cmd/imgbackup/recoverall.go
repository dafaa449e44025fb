// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/spf13/pflag"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/jobs"
	"github.com/imgbackup/imgbackup/newhost"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/recovery"
	"github.com/imgbackup/imgbackup/request"
	"github.com/imgbackup/imgbackup/restore"
)

// The values of --start.
const (
	startAll       = "all"
	startNone      = "none"
	startAutostart = "autostart"
)

// recoverAllOptions are the flags of recover for all domains of a repository.
type recoverAllOptions struct {
	all    bool
	before string
	except []string
	start  string

	at time.Time // before
}

func (o *recoverAllOptions) addFlags(f *pflag.FlagSet) {
	f.BoolVar(&o.all, "all", false, "recover every domain of the repository, to DIR/DOMAIN")
	f.StringVar(&o.before, "before", "", "with --all: as of this `TIME`, as '2026-11-28 03:00'")
	f.StringArrayVar(&o.except, "except", nil, "with --all: without this `DOMAIN`; may be repeated")
	f.StringVar(&o.start, "start", startAll, "with --all: start `WHICH`: all, none, or autostart, those that started with their host")
	section(f, whichDisks, "all", "before", "except")
	section(f, whatIsDone, "start")
}

// complete refuses what makes no sense for all domains, or without that.
func (o *recoverAllOptions) complete(f *pflag.FlagSet, args []string) (err error) {
	if !o.all {
		for _, name := range []string{"before", "except", "start"} {
			if f.Changed(name) {
				return usage.Errorf("--%s is for --all", name)
			}
		}
		return nil
	}
	if err := errors.Join(exclude(f, "all", "checkpoint", "name", "new-identity", "no-define", "no-start"), notEmpty(f, "before")); err != nil {
		return err
	}
	switch {
	case len(args) > 0:
		return usage.Errorf("--all takes every domain: none can be named (--except leaves one out)")
	case !slices.Contains([]string{startAll, startNone, startAutostart}, o.start):
		return usage.Errorf("--start %q: want all, none or autostart", o.start)
	}
	for _, name := range o.except {
		if err := chain.CheckDomain(name); err != nil {
			return usage.Errorf("--except: %w", err)
		}
	}
	if o.before != "" {
		if o.at, err = request.ParseTime(o.before, time.Local); err != nil {
			return usage.Errorf("--before: %w", err)
		}
	}
	return nil
}

// starts reports whether a domain is to be started.
func (o *recoverAllOptions) starts(m *chain.Manifest) bool {
	return o.start == startAll || o.start == startAutostart && m.Autostart
}

// recoverAll recovers every domain of a repository: they all run from it at once, and are copied side by
// side. One that fails does not keep the others from it.
func (a *app) recoverAll(ctx context.Context, r recoverRequest) (err error) {
	repo, limit, err := a.beginRecovery(ctx, &r)
	if err != nil {
		return err
	}
	req := a.newHostRequest(restoreRequest{all: allOptions{
		dir: r.dir, at: r.all.at, except: r.all.except, ignoreSpace: r.space, define: true, connect: r.connect,
	}}, 1)
	req.Format, req.Recover = qcow2.Raw, true
	host, err := newhost.Open(repo, req)
	if err != nil {
		return err
	}
	defer func() { _ = host.Close() }() // all that matters is durable
	if err := host.Plan(ctx); err != nil {
		return err
	}
	all := &recoveries{app: a, r: r, host: host, sides: a.newSides("recover", max(2, len(host.Domains)))}
	defer all.close()
	for _, d := range host.Domains {
		for _, text := range d.SharesDisks {
			a.note(fmt.Sprintf("%s: %s. They are two copies now", oneLine(d.Name), text))
		}
		one := &oneRecovery{restoredDomain: &restoredDomain{Domain: d}, up: make(chan struct{})}
		all.each = append(all.each, one)
		if d.State != newhost.Waits {
			continue
		}
		side := *a
		side.beside = &beside{what: all.sides.what, domain: d.Name, table: all.sides.table}
		side.events = a.events.fork(d.Name)
		if all.sides.table != nil {
			side.err = all.sides.table
		}
		one.work = side.newRecovery(recoverRequest{dir: d.Folder, noStart: !r.all.starts(d.Manifest), space: r.space, connect: r.connect}, d.Manifest, limit)
		one.adjust(all.cache())
		// The first is started when all were looked at.
		if one.rec, err = recovery.Open(ctx, repo, d.Manifest, one.work.req); err != nil {
			d.State, d.Err = newhost.Failed, err
		}
	}
	return all.run(ctx)
}

// oneRecovery is one domain of several.
type oneRecovery struct {
	*restoredDomain
	work *recoveryWork      // nil: there is nothing to do
	rec  *recovery.Recovery // nil: there is nothing to do, or it failed
	up   chan struct{}      // closed once it runs, or will not
	is   sync.Once
}

// upOrNot lets the next one begin.
func (o *oneRecovery) upOrNot() { o.is.Do(func() { close(o.up) }) }

// adjust lets the next one begin once this one runs.
func (o *oneRecovery) adjust(cache int64) {
	req := &o.work.req
	req.Cache = cache
	tell, starts := req.Tell, !req.NoStart
	req.Tell = func(e recovery.Event) {
		tell(e)
		if e.Kind == recovery.EventRunning || !starts && e.Kind == recovery.EventDefined || e.Kind == recovery.EventRecovered {
			o.upOrNot()
		}
	}
}

// recoveries are all of them.
type recoveries struct {
	*app
	r     recoverRequest
	host  *newhost.Host
	sides sides
	each  []*oneRecovery
}

// cache is what each may take of memory for what its guest reads, bytes.
func (all *recoveries) cache() int64 {
	return max(int64(all.memory.Part(256<<20, 32<<20))/int64(max(1, len(all.host.Domains))), 8<<20)
}

func (all *recoveries) close() {
	for _, o := range all.each {
		if o.rec != nil {
			_ = o.rec.Close() // all that matters is durable
		}
		if o.work != nil {
			o.work.a.events.join()
		}
	}
	all.sides.table.close()
}

// run starts one after the other, those first that started with their host, and waits for all.
func (all *recoveries) run(ctx context.Context) error {
	order := slices.Clone(all.each)
	slices.SortStableFunc(order, func(x, y *oneRecovery) int {
		first := func(o *oneRecovery) int {
			if o.Manifest != nil && o.Manifest.Autostart {
				return 0
			}
			return 1
		}
		return first(x) - first(y)
	})
	all.serving.Store(true)
	var wg sync.WaitGroup
	for _, o := range order {
		if o.rec == nil {
			o.settle(ctx)
			all.tellNotRestored(o.restoredDomain)
			continue
		}
		wg.Go(func() {
			defer o.upOrNot()
			if all.sides.table != nil {
				all.sides.table.step(jobs.Done{What: all.sides.what, Domain: o.Name, Seconds: -1}, "")
				defer all.sides.table.end(all.sides.what, o.Name)
			}
			if err := o.work.run(ctx, o.rec); err != nil {
				o.State, o.Err = newhost.Failed, err
			} else {
				o.State = newhost.Restored
			}
			o.settle(ctx)
			o.work.a.settle(ctx, o.Err)
			if ctx.Err() == nil {
				all.tellNotRestored(o.restoredDomain)
			}
		})
		<-o.up
	}
	wg.Wait()
	if ctx.Err() != nil {
		all.note(fmt.Sprintf("run the same command again, with --dir %s, to go on: until then VMs that run are stopped at their next request to a disk", all.r.dir))
		return context.Cause(ctx)
	}
	var ended []*restoredDomain
	for _, o := range all.each {
		o.filesAre()
		ended = append(ended, o.restoredDomain)
	}
	return all.endRestoreAll(ctx, restoreRequest{all: allOptions{dir: all.r.dir, at: all.r.all.at, what: "recovered"}}, ended)
}

// filesAre fills in where the disks of a domain are that was recovered.
func (o *oneRecovery) filesAre() {
	if o.State != newhost.Restored || o.Manifest == nil {
		return
	}
	o.result = &restoreJSON{Domain: o.Name, Checkpoint: o.Manifest.Checkpoint, Result: &restore.Result{}, Disks: []restoredDiskJSON{}}
	for _, t := range o.Targets {
		d, _ := o.Manifest.Disk(t.Disk)
		o.result.Disks = append(o.result.Disks, restoredDiskJSON{restore.DiskResult{Disk: t.Disk, Path: t.Path, Format: string(t.Format), Size: d.Size}, t.Disk})
	}
	o.Defined = true
}
