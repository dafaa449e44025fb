// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/newhost"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/request"
	"github.com/imgbackup/imgbackup/virsh"
)

// allOptions are the flags of restore for all domains of a repository.
type allOptions struct {
	all         bool
	dir         string
	before      string
	except      []string
	parallel    int
	ignoreSpace bool
	dryRun      bool
	define      bool
	connect     string // where libvirt is
	what        string // is done, in a word; empty: restored

	at time.Time // before
}

func (o *allOptions) addFlags(f *pflag.FlagSet) {
	f.BoolVar(&o.all, "all-domains", false, "restore every domain of the repository")
	f.StringVar(&o.dir, "dir", "", "with --all-domains: each domain to `DIR`/DOMAIN/")
	f.StringVar(&o.before, "before", "", "with --all-domains: as of this `TIME`, as '2026-11-28 03:00'")
	f.StringArrayVar(&o.except, "except", nil, "with --all-domains: without this `DOMAIN`; may be repeated")
	f.IntVar(&o.parallel, "parallel", 0, "with --all-domains: restore `N` domains at once (default: by cores and memory)")
	f.BoolVar(&o.ignoreSpace, "ignore-space", false, "with --all-domains: go on where there seems to be no room for all")
	f.BoolVar(&o.dryRun, "dry-run", false, "with --all-domains: look at all of it, say what would go where, and restore nothing")
	f.BoolVar(&o.define, "define", false, "with --all-domains: have libvirt define each domain")
	f.StringVar(&o.connect, "connect", virsh.DefaultURI, "with --define: libvirt is at this `URI`")
	section(f, whichDisks, "all-domains", "before")
	section(f, whereTo, "dir")
	section(f, whatIsDone, "define")
}

// complete refuses what makes no sense for all domains, or without that.
func (o *allOptions) complete(f *pflag.FlagSet, args []string) (err error) {
	only := []string{"dir", "before", "except", "parallel", "ignore-space", "dry-run", "define", "connect"}
	if !o.all {
		for _, name := range only {
			if f.Changed(name) {
				return usage.Errorf("--%s is for --all-domains", name)
			}
		}
		return nil
	}
	err = exclude(f, "all-domains", "checkpoint", "revision", "disk", "output", "to", "in-place", "adjust-xml", "new-identity", "name", "force", "secret-file")
	switch {
	case err != nil:
		return err
	case len(args) > 0:
		return usage.Errorf("--all-domains takes every domain: none can be named (--except leaves one out)")
	case o.dir == "":
		return usage.Errorf("--all-domains: no destination: give --dir DIR")
	case f.Changed("parallel") && o.parallel < 1:
		return usage.Errorf("--parallel %d: want a number from 1 on", o.parallel)
	}
	if err := errors.Join(notEmpty(f, "before", "connect"), exclude(f, "continue", "skip-damaged")); err != nil {
		return err
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
	if o.dir, err = sys.Locate(o.dir); err != nil {
		return fmt.Errorf("--dir: %w", err)
	}
	return nil
}

// restoreAll restores every domain of a repository, some at once. One that fails does not
// keep the others from being restored.
func (a *app) restoreAll(ctx context.Context, r restoreRequest) error {
	if err := r.checkImage(cmp.Or(qcow2.Format(r.format), qcow2.Qcow2)); err != nil {
		return err
	}
	if err := r.setLimit(); err != nil {
		return err
	}
	repo, err := a.openReading(ctx)
	if err == nil {
		err = checkReadsData(repo, "restore")
	}
	if err != nil {
		return err
	}
	if !r.all.define { // else virsh is started, of which nobody knows what it needs
		if err := a.restrict(confine.Self{Write: []string{existing(r.all.dir)}}, reads(repo)); err != nil {
			return err
		}
	}
	n := a.atOnce(repo, r.all.parallel, 1<<10)
	host, err := newhost.Open(repo, a.newHostRequest(r, n))
	if err != nil {
		return err
	}
	defer func() { _ = host.Close() }() // all that matters is durable
	if err := host.Plan(ctx); err != nil {
		return err
	}
	all := a.restoreEach(ctx, host, r, a.newSides("restore", min(n, len(host.Domains))))
	return a.endRestoreAll(ctx, r, all)
}

func (a *app) newHostRequest(r restoreRequest, n int) newhost.Request {
	req := newhost.Request{
		Dir: r.all.dir, Before: r.all.at, Format: qcow2.Format(r.format), Except: r.all.except,
		Options: r.options, Tool: tool(), AtOnce: n, IgnoreSpace: r.all.ignoreSpace, Step: a.step,
		Note: func(domain, text string) {
			if domain != "" {
				text = oneLine(domain) + ": " + text
			}
			a.note(text)
		},
	}
	if r.all.define {
		req.Libvirt = virsh.Connection{URI: r.all.connect}
		req.Connect, req.TPMs = r.all.connect, tpmsOf(r.all.connect)
	}
	return req
}

// tpmsOf is where a libvirt has the state of TPMs; empty: nobody knows.
func tpmsOf(uri string) string {
	u, err := url.Parse(uri)
	if err != nil || u.Host != "" || u.Path != "/system" {
		return ""
	}
	return request.TPMs
}

// restoredDomain is what came of one domain of several.
type restoredDomain struct {
	*newhost.Domain
	status int
	result *restoreJSON // of this run or an earlier one
}

// restoreEach restores the domains that wait.
func (a *app) restoreEach(ctx context.Context, host *newhost.Host, r restoreRequest, s sides) []*restoredDomain {
	var all []*restoredDomain
	var g errgroup.Group
	g.SetLimit(s.n)
	for _, d := range host.Domains {
		o := &restoredDomain{Domain: d}
		all = append(all, o)
		for _, text := range d.SharesDisks {
			a.note(fmt.Sprintf("%s: %s. They are two copies now", d.Name, text))
		}
		if d.State != newhost.Waits || r.all.dryRun {
			if d.State == newhost.Stands && r.all.define && !r.all.dryRun {
				o.Err = host.Define(ctx, d)
			}
			o.settle(ctx)
			a.tellNotRestored(o)
			continue
		}
		g.Go(func() error {
			if ctx.Err() != nil {
				return nil
			}
			a.aside(s, d.Name, func(side *app) {
				side.restoreOne(ctx, host, o, r)
			}, func(side *app, err error) {
				if err != nil && o.status == exitDone {
					o.status, o.Err = exitFailed, fmt.Errorf("the result could not be written: %w", err)
				}
				if ctx.Err() == nil {
					side.tellNotRestored(o)
				}
			})
			return nil
		})
	}
	_ = g.Wait() // each has told what came of it
	s.table.close()
	return all
}

// settle finds out the status that the domain has.
func (o *restoredDomain) settle(ctx context.Context) {
	if o.Err != nil {
		o.status = exitCode(ctx, o.Err)
	}
	if rec := o.Record; rec != nil {
		o.result = &restoreJSON{Domain: rec.Domain, Checkpoint: rec.Checkpoint, Result: &rec.Result, Disks: []restoredDiskJSON{}}
		for _, d := range rec.Result.Disks {
			o.result.Disks = append(o.result.Disks, restoredDiskJSON{d, d.Disk})
		}
	}
}

// tellNotRestored tells of a domain that failed.
func (a *app) tellNotRestored(o *restoredDomain) {
	if o.Err == nil {
		return
	}
	text := strings.ReplaceAll(o.Err.Error(), "\n", "; ")
	a.events.tell(event{Event: "error", Domain: o.Name, Error: text})
	a.say("%s: %s", oneLine(o.Name), text)
}

// restoreOne restores one domain; a person sees the result at once.
func (a *app) restoreOne(ctx context.Context, host *newhost.Host, o *restoredDomain, r restoreRequest) {
	bar := a.newBar("restoring " + o.Name)
	var disks []string
	for _, t := range o.Targets {
		disks = append(disks, t.Disk)
	}
	a.events.expect(o.Name, disks...)
	options := r.options
	options.Progress = a.restoring(bar)
	result, err := host.Restore(ctx, o.Domain, options, a.restoreNow)
	bar.clear()
	a.settle(ctx, err)
	if err != nil {
		o.Err = hintSkip(err)
		o.settle(ctx)
		return
	}
	view := viewRestore(o.Manifest, result, o.Definition, nil)
	o.result = &view
	switch {
	case o.WrongDefinition != nil:
		a.note(o.WrongDefinition.Error())
	case o.Definition != nil:
		a.noteAdjusted(r, o.Definition, result)
	}
	err = lostSome(result)
	if !a.json {
		err = errors.Join(a.printRestore(o.Manifest, result, o.Definition), err)
	}
	if r.all.define {
		err = errors.Join(err, host.Define(ctx, o.Domain))
	}
	if err != nil {
		o.Err, o.status = err, exitCode(ctx, err)
	}
}

// restoredDomainJSON is a domain as restore --all-domains --json shows it.
type restoredDomainJSON struct {
	Domain     string       `json:"domain"`
	State      string       `json:"state"`
	Status     int          `json:"status"`
	Checkpoint string       `json:"checkpoint,omitempty"`
	Created    *time.Time   `json:"created,omitempty"`
	Folder     string       `json:"folder,omitempty"`
	Bytes      int64        `json:"data_bytes"`
	Changed    []string     `json:"changed,omitempty"`
	Defined    bool         `json:"defined,omitempty"`
	Reason     string       `json:"reason,omitempty"`
	Error      string       `json:"error,omitempty"`
	Restore    *restoreJSON `json:"restore,omitempty"`
}

func (o *restoredDomain) view() restoredDomainJSON {
	v := restoredDomainJSON{
		Domain: o.Name, State: string(o.State), Status: o.status, Folder: o.Folder, Bytes: o.Data, Changed: o.Changed, Defined: o.Defined,
		Reason: o.Why, Restore: o.result,
	}
	switch {
	case o.Record != nil:
		v.Checkpoint, v.Created = o.Record.Checkpoint, &o.Record.Created
	case o.Manifest != nil:
		v.Checkpoint, v.Created = o.Manifest.Checkpoint, &o.Manifest.Created
	}
	if o.Err != nil {
		v.Error = strings.ReplaceAll(o.Err.Error(), "\n", "; ")
	}
	return v
}

// restoredAllJSON is what restore --all-domains --json prints.
type restoredAllJSON struct {
	Status   int                  `json:"status"`
	Dir      string               `json:"dir"`
	Before   *time.Time           `json:"before,omitempty"`
	Restored int                  `json:"restored"`
	Stands   int                  `json:"stands"`
	Waits    int                  `json:"waits"`
	Failed   int                  `json:"failed"`
	Skipped  int                  `json:"skipped"`
	Domains  []restoredDomainJSON `json:"domains"`

	what string // is done, in a word
}

// endRestoreAll prints what is where.
func (a *app) endRestoreAll(ctx context.Context, r restoreRequest, all []*restoredDomain) error {
	out := restoredAllJSON{Dir: r.all.dir, what: cmp.Or(r.all.what, string(newhost.Restored))}
	if !r.all.at.IsZero() {
		out.Before = &r.all.at
	}
	for _, o := range all {
		v := o.view()
		switch out.Status = worst(out.Status, o.status); {
		case o.Err != nil:
			out.Failed++
		case o.State == newhost.Restored:
			out.Restored++
		case o.State == newhost.Stands:
			out.Stands++
		case o.State == newhost.Skipped:
			out.Skipped++
		default:
			out.Waits++
		}
		out.Domains = append(out.Domains, v)
	}
	if err := ctx.Err(); err != nil && out.Waits > 0 {
		return fmt.Errorf("%d of %d domains were restored, the same command goes on: %w", out.Restored+out.Stands, len(all), err)
	}
	if err := a.printRestoredAll(out); err != nil {
		return err
	}
	if out.Status != exitDone {
		return domainsFailed{out.Status, fmt.Errorf("%d of %d domains could not be %s", out.Failed, len(all), out.what)}
	}
	return nil
}

func (a *app) printRestoredAll(out restoredAllJSON) error {
	if a.json {
		return a.printJSON(out)
	}
	w := &checkedWriter{w: a.out}
	w.printf("\n%s in %s: %d %s, %d there already, %d failed, %d skipped", count(len(out.Domains), "domain"), out.Dir, out.Restored, out.what, out.Stands, out.Failed, out.Skipped)
	if out.Waits > 0 {
		w.printf(", %d to be restored", out.Waits)
	}
	w.printf("\n")
	t := &table{out: a.out}
	t.row("DOMAIN", "CHECKPOINT", "CREATED", "WHAT", "WHERE", "STATE")
	for _, d := range out.Domains {
		created := "-"
		if d.Created != nil {
			created = shortTime(*d.Created)
		}
		row := func(what, path string) {
			t.row(oneLine(d.Domain), orDash(d.Checkpoint), created, what, path, d.state(out.what))
		}
		if d.Restore == nil {
			row("-", orDash(oneLine(d.Folder)))
			continue
		}
		for _, disk := range d.Restore.Disks {
			row(disk.Disk, oneLine(disk.Path))
		}
		for _, f := range d.Restore.Files {
			if f.Role == chain.RoleDomainXML && f.Damage == "" {
				row("definition", oneLine(f.Path))
			}
		}
	}
	if w.err == nil {
		w.err = t.print()
	}
	return w.err
}

// state is what came of a domain, in words; done is the one for that it succeeded.
func (d *restoredDomainJSON) state(done string) string {
	text := done
	switch {
	case d.Error != "":
		return fmt.Sprintf("failed (%d): %s", d.Status, oneLine(d.Error))
	case d.Reason != "":
		return "skipped: " + d.Reason
	case d.State == string(newhost.Stands) && len(d.Changed) > 0:
		text = "there already, written to since"
	case d.State == string(newhost.Stands):
		text = "there already"
	case d.State == string(newhost.Waits):
		return fmt.Sprintf("to be restored, %s", size(d.Bytes))
	}
	if d.Defined {
		text += ", defined"
	}
	return text
}
