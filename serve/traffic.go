// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"sync"
	"time"
)

// traffic knows whether a guest has requests at work, for whom others wait.
type traffic struct {
	mu     sync.Mutex
	active int
	last   time.Time     // when a request ended
	idle   chan struct{} // closed when none is at work any more; nil: nobody waits
}

// enter counts a request until leave is called.
func (t *traffic) enter() (leave func()) {
	t.mu.Lock()
	t.active++
	t.mu.Unlock()
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.last = time.Now()
		if t.active--; t.active == 0 && t.idle != nil {
			close(t.idle)
			t.idle = nil
		}
	}
}

// How long a guest that never rests may keep the fill waiting before each of its pieces, and
// for how long after a request it counts as busy.
const (
	mostYield = 50 * time.Millisecond
	restless  = 100 * time.Millisecond
)

// yield returns when no request is at work, or after mostYield.
func (t *traffic) yield(ctx context.Context) {
	t.mu.Lock()
	if t.active == 0 {
		t.mu.Unlock()
		return
	}
	if t.idle == nil {
		t.idle = make(chan struct{})
	}
	idle := t.idle
	t.mu.Unlock()
	limit := time.NewTimer(mostYield)
	defer limit.Stop()
	select {
	case <-idle:
	case <-limit.C:
	case <-ctx.Done():
	}
}

// busy reports whether requests are at work, or were a moment ago.
func (t *traffic) busy() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.active > 0 || time.Since(t.last) < restless
}
