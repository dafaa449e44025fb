// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/memory"
	"github.com/imgbackup/imgbackup/jobs"
)

// beside is what a copy of the app has that works on one of several domains at once.
type beside struct {
	what, domain string
	table        *workTable // of all of them; nil: there is no terminal
}

// set shows how far the domain is.
func (b *beside) set(done, total int64) {
	if b != nil && b.table != nil {
		b.table.set(b.what, b.domain, done, total)
	}
}

// sides is work on several domains.
type sides struct {
	what  string // is done, in a word
	n     int    // at once
	table *workTable
}

// newSides is for n domains at once. Its table is to be closed.
func (a *app) newSides(what string, n int) sides {
	s := sides{what: what, n: n}
	if n > 1 && a.progress == progressAuto {
		s.table = a.newWorkTable()
	}
	return s
}

// aside does work on one of several domains, with an app of its own if others go on beside it: what is told
// says of which domain it is, and the result is told in one piece. Then end is called, with what kept
// the result from being written.
func (a *app) aside(s sides, domain string, work func(*app), end func(*app, error)) {
	if s.n == 1 {
		work(a)
		end(a, nil)
		return
	}
	side := *a
	side.beside = &beside{what: s.what, domain: domain, table: s.table}
	side.events = a.events.fork(domain)
	defer side.events.join()
	var result bytes.Buffer
	side.out = &result
	if s.table != nil {
		side.err = s.table
		s.table.step(jobs.Done{What: s.what, Domain: domain, Seconds: -1}, "")
	}
	work(&side)
	write := func() error {
		_, err := a.out.Write(result.Bytes())
		return err
	}
	if s.table == nil {
		end(&side, write())
		return
	}
	s.table.end(s.what, domain)
	end(&side, s.table.around(write))
}

// others is what backups share that go on side by side.
type others struct {
	mu      sync.Mutex
	held    map[string]*sync.Mutex // for each domain and image
	limiter *rate.Limiter
}

// enter waits until no other definition of the same domain is at work, which must not be woven
// into one chain, and none with an image of this one, and lets the backup share what all read
// per second; leave ends that.
func (o *others) enter(req *backup.Request) (leave func()) {
	names := []string{"domain " + req.Domain}
	for _, d := range req.Disks {
		names = append(names, "image "+backup.ImagePath(d.Path))
	}
	slices.Sort(names) // in one order, so that no two wait for one another
	var held []*sync.Mutex
	for _, name := range slices.Compact(names) {
		m := o.one(name)
		m.Lock()
		held = append(held, m)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.limiter == nil && req.RateLimit > 0 {
		o.limiter = backup.NewLimiter(req.RateLimit)
	}
	req.Limiter = o.limiter
	return func() {
		for _, m := range held {
			m.Unlock()
		}
	}
}

// one is what whoever works on something of this name holds.
func (o *others) one(name string) *sync.Mutex {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.held[name] == nil {
		o.held[name] = &sync.Mutex{}
	}
	return o.held[name]
}

// atOnce is how many of some domains are backed up at once. What they may take of memory is
// divided among them: in repo, and for Go's heap.
func (a *app) atOnce(repo *chain.Repository, asked, domains int) int {
	room := memory.Room()
	if a.memory.Limited() {
		room = a.memory.Bytes()
	}
	n := min(cmp.Or(asked, jobs.Parallel(room, memory.Usual)), domains)
	if most := max(1, int(room/memory.Least)); n > most {
		a.note(fmt.Sprintf("there is memory for %d at once, not %d", most, n))
		n = most
	}
	if n < 2 {
		return 1
	}
	repo.Memory = memory.Split(room, n)
	if _, given := memory.Find(); a.alone && !given {
		debug.SetMemoryLimit(repo.Memory.HeapOf(n))
	}
	return n
}

// backupEach backs domains up, and returns what came of them, in their order.
func (a *app) backupEach(ctx context.Context, repo *chain.Repository, b backupOptions, files []string) ([]domainOutcome, error) {
	n := a.atOnce(repo, b.parallel, len(files))
	all := make([]*domainOutcome, len(files))
	shared := &others{held: make(map[string]*sync.Mutex)}
	sides := a.newSides(jobs.StepBackup, n)
	var g errgroup.Group
	g.SetLimit(n)
	for i := range files {
		g.Go(func() error {
			if ctx.Err() != nil {
				return nil
			}
			o := a.backupBeside(ctx, repo, b, files[i], shared, sides)
			if ctx.Err() == nil || o.Status == exitDone {
				all[i] = &o
			}
			return nil
		})
	}
	_ = g.Wait() // each has told what came of it
	sides.table.close()
	var out []domainOutcome
	for _, o := range all {
		if o != nil {
			out = append(out, *o)
		}
	}
	if err := ctx.Err(); err != nil && len(out) < len(files) {
		return nil, fmt.Errorf("%d of %d domains were dealt with: %w", len(out), len(files), err)
	}
	return out, nil
}

// tellFailed tells of a domain that failed.
func (a *app) tellFailed(o *domainOutcome) {
	if o.Error != "" && !o.Skipped {
		a.events.tell(event{Event: "error", Domain: o.Domain, Error: o.Error})
		a.say("%s (%s): %s", o.name(), o.File, o.Error)
	}
}

// backupBeside is backupDefinition beside others.
func (a *app) backupBeside(ctx context.Context, repo *chain.Repository, b backupOptions, file string, shared *others, s sides) (o domainOutcome) {
	a.aside(s, strings.TrimSuffix(file, ".xml"), func(side *app) {
		o = side.backupDefinition(ctx, repo, b, file, shared)
	}, func(side *app, err error) {
		if err != nil && o.Status == exitDone {
			o.Status, o.Error = exitFailed, explain(ctx, fmt.Errorf("the result could not be written: %w", err))
		}
		if ctx.Err() == nil {
			side.tellFailed(&o)
		}
	})
	return o
}
