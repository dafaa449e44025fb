// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/imgbackup/imgbackup/backup"
)

// bar shows a person how far long work has come. All its
// methods may be called concurrently, and on nil.
type bar struct {
	mu    sync.Mutex
	bar   *progressbar.ProgressBar
	what  string
	a     *app
	plain bool      // lines instead
	told  time.Time // when the last one was written
	last  int64     // and how much was done then
}

// plainInterval is how often --progress plain writes a line.
const plainInterval = 10 * time.Second

// newBar returns nil where nothing is to be shown.
func (a *app) newBar(what string) *bar {
	f, ok := a.err.(*os.File)
	switch {
	case a.beside != nil && a.beside.table != nil:
		return nil // which shows all of them
	case a.progress == progressPlain:
		return &bar{what: what, a: a, plain: true, last: -1}
	case a.progress == progressBar,
		a.progress == progressAuto && !a.quiet && ok && term.IsTerminal(int(f.Fd())):
		return &bar{what: what, a: a}
	}
	return nil
}

// line writes a line, from time to time and at the end. It needs mu.
func (b *bar) line(done, total int64) {
	if time.Since(b.told) < plainInterval && (done < total || b.last == done) {
		return
	}
	b.told, b.last = time.Now(), done
	b.a.say("%s: %d%%", b.what, int(100*float64(done)/float64(total)))
}

// set shows done of total bytes.
func (b *bar) set(done, total int64) {
	if b == nil || total <= 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.plain {
		b.line(done, total)
		return
	}
	if b.bar == nil {
		b.bar = progressbar.NewOptions64(total,
			progressbar.OptionSetDescription(b.what),
			progressbar.OptionSetWriter(b.a.err),
			progressbar.OptionShowBytes(true),
			progressbar.OptionShowTotalBytes(true),
			progressbar.OptionUseIECUnits(true),
			progressbar.OptionSetPredictTime(true),
			progressbar.OptionSetWidth(24),
			progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionClearOnFinish(),
		)
	}
	if b.bar.GetMax64() != total {
		b.bar.ChangeMax64(total)
	}
	// A bar that cannot be drawn is no reason to stop the work.
	_ = b.bar.Set64(min(done, total))
}

// clear takes the bar off the screen.
func (b *bar) clear() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.bar != nil {
		_ = b.bar.Clear()
	}
}

// hooks tell of a backup's progress in every way that was asked for.
func (a *app) hooks(bar *bar) backup.Hooks {
	const reading = "reading"
	return backup.Hooks{
		Progress: func(done, total int64) {
			bar.set(done, total)
			a.beside.set(done, total)
			a.events.set(reading, done, total)
		},
		Disk: func(target string, done, total int64) { a.events.setDisk(target, reading, done, total) },
		Step: func(name string) {
			a.events.tell(event{Event: "step", Step: name})
			if a.step != nil {
				a.step(name)
			}
		},
		Note: func(msg string) {
			bar.clear()
			a.note(msg)
		},
	}
}

// expect tells of the disks that are to be backed up.
func (a *app) expect(req backup.Request) {
	var disks []string
	for _, d := range req.Disks {
		disks = append(disks, d.Disk)
	}
	a.events.expect(req.Domain, disks...)
}

// settle tells what became of the disks that were expected.
func (a *app) settle(ctx context.Context, err error) {
	if err == nil {
		a.events.settle(exitDone, nil, "")
		return
	}
	a.events.settle(exitCode(ctx, err), err, explain(ctx, err))
}
