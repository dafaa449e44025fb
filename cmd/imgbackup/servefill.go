// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/time/rate"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/request"
	"github.com/imgbackup/imgbackup/serve"
)

// filler is serve's --fill; nil: it was not given.
type filler struct {
	a     *app
	limit *rate.Limiter
}

func (a *app) newFiller(r serveRequest) (*filler, error) {
	switch {
	case r.fill && len(r.cow) == 0:
		return nil, usage.Errorf("--fill fills the files of --cow: give --cow TARGET=FILE")
	case r.limitRate != "" && !r.fill:
		return nil, usage.Errorf("--limit-rate is of --fill")
	case !r.fill:
		return nil, nil
	}
	limit, err := rateLimiter(r.limitRate)
	return &filler{a, limit}, err
}

// rateLimiter is the value of --limit-rate; nil: there is none.
func rateLimiter(value string) (*rate.Limiter, error) {
	if value == "" {
		return nil, nil
	}
	n, err := request.ParseRate(value)
	if err != nil {
		return nil, err
	}
	return rate.NewLimiter(rate.Limit(n), archive.GridSize), nil
}

// start fills beside the service until end is called, which returns what kept it from being done,
// unless that was the end.
func (f *filler) start(ctx context.Context, repo *chain.Repository, m *chain.Manifest, cows []*serve.Cow, s *nbdService) (end func() error) {
	if f == nil {
		return func() error { return nil }
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var disks []string
	for _, c := range cows {
		disks = append(disks, c.Name())
	}
	f.a.events.expect(m.Domain, disks...)
	bar := f.a.newBar("filling")
	run := serve.Filler{
		Repo: repo, Manifest: m, Cows: cows, Limit: f.limit,
		Progress: func(disk string, done, total int64) {
			bar.set(done, total)
			f.a.events.setDisk(disk, "filling", done, total)
		},
		Filled: func(c *serve.Cow) error {
			bar.clear()
			return f.a.tellFilled(c, s)
		},
	}
	done := make(chan error, 1)
	go func() {
		err := run.Run(ctx)
		bar.clear()
		if err != nil && ctx.Err() == nil {
			f.a.note(oneLine(err.Error()))
		}
		done <- err
	}()
	return func() error {
		cancel(errServed)
		err := <-done
		if errors.Is(err, errServed) || errors.Is(err, errInterrupted) {
			f.a.events.settle(exitInterrupted, nil, "") // they are not what they will be
			return nil
		}
		return err
	}
}

// filledJSON is how serve --json --fill tells of a disk that is complete.
type filledJSON struct {
	Event string `json:"event"` // filled
	diskNames
	Cow string `json:"cow"` // the file, which is a raw image of its own now
}

// tellFilled tells that a scratch file is the disk from now on.
func (a *app) tellFilled(c *serve.Cow, s *nbdService) error {
	a.events.diskDone(c.Name())
	line := fmt.Sprintf("filled %s: it is all of disk %s, a raw image that needs nothing else", c.Path(), c.Name())
	switch {
	case s.inherited:
		a.note(line)
	case a.json:
		return a.printJSON(filledJSON{"filled", diskNamed(c.Name()), c.Path()})
	default:
		w := &checkedWriter{w: a.out}
		w.printf("%s\n", line)
		return w.err
	}
	return nil
}
