// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// bar shows how far long work has come, when stderr is a terminal. All its
// methods may be called concurrently, and on nil.
type bar struct {
	mu   sync.Mutex
	bar  *progressbar.ProgressBar
	what string
	a    *app
}

// newBar returns nil where nobody would see a bar.
func (a *app) newBar(what string) *bar {
	f, ok := a.err.(*os.File)
	if a.quiet || !ok || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	return &bar{what: what, a: a}
}

// set shows done of total bytes.
func (b *bar) set(done, total int64) {
	if b == nil || total <= 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
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

// size writes bytes for people.
func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }
