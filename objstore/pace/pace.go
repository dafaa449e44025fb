// SPDX-License-Identifier: Apache-2.0

// Package pace bounds how many requests one store works on at once: up to a limit that
// is given, and fewer while the store says that these are too many.
//
// All requests to a store share one [Limiter], whoever makes them. It begins with as
// many as are allowed, since a store that can't take them says so. Each request that is
// refused takes the limit down to those that were not; one that times out halves it. It
// grows by one after as many successes as it has itself, while more are waiting, and more
// slowly each time up to where a request was refused before. It has no clock: what a
// store can bear shows in its answers.
package pace

import (
	"container/list"
	"context"
	"sync"
)

// Bounds of Options.Most.
const (
	Default = 16
	Max     = 256
)

// unit is what a request weighs; a small one may weigh less.
const (
	unit      = 8
	smallUnit = 1
)

// Outcome is how a request ended, as far as it matters.
type Outcome int

// The outcomes.
const (
	Done     Outcome = iota // answered
	Refused                 // the store was asked too much at once
	TimedOut                // no answer came, or it stood still
	Failed                  // anything else, which says nothing
)

// Options are the settings of a Limiter; the zero value is good.
type Options struct {
	// Most is how many requests there are at once, 1 to Max; 0: Default, and then small
	// requests, which wait for the store rather than for the line, count an eighth until
	// the store refuses any.
	Most int
}

// Limiter lets requests begin. It is safe for concurrent use.
type Limiter struct {
	mu      sync.Mutex
	most    int
	limit   int // requests; 1 to most
	lenient bool
	used    int       // weight of what is at work
	working int       // number of it
	waiting list.List // of *waiter; who came first is in front

	cuts    int // how often the limit was halved
	good    int // successes since the limit changed
	ceiling int // at so many requests one was refused; 0: none was
	refused int // how often in a row at this ceiling, at most maxRefused
}

// maxRefused bounds how slowly the limit is tried again: 2 to the power of it times.
const maxRefused = 6

type waiter struct {
	small bool
	ready chan struct{} // closed when it may begin
}

// New returns a limiter.
func New(o Options) *Limiter {
	l := &Limiter{most: o.Most}
	if o.Most <= 0 {
		l.most, l.lenient = Default, true
	}
	l.most = min(l.most, Max)
	l.limit = l.most
	return l
}

// Most is how many requests there may be at once.
func (l *Limiter) Most() int { return l.most }

// Limit is how many there may be now.
func (l *Limiter) Limit() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.limit
}

// Turn is a request at work.
type Turn struct {
	l     *Limiter
	small bool
	cuts  int // of the limiter, when it began
	once  sync.Once
}

// Begin waits until a request may begin. Who came first begins first. The error is the
// context's.
func (l *Limiter) Begin(ctx context.Context, small bool) (*Turn, error) {
	l.mu.Lock()
	if l.waiting.Len() == 0 && l.fits(small) {
		defer l.mu.Unlock()
		l.begin(small)
		return &Turn{l: l, small: small, cuts: l.cuts}, nil
	}
	w := &waiter{small: small, ready: make(chan struct{})}
	at := l.waiting.PushBack(w)
	l.mu.Unlock()
	select {
	case <-w.ready:
		return l.turn(small), nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-w.ready: // meanwhile
		l.end(small)
	default:
		l.waiting.Remove(at)
	}
	l.admit() // who stood behind it may fit
	return nil, context.Cause(ctx)
}

// weight needs the lock, as do all of the functions below but turn and End.
func (l *Limiter) weight(small bool) int {
	if small && l.lenient {
		return smallUnit
	}
	return unit
}

func (l *Limiter) fits(small bool) bool {
	return l.working == 0 || l.used+l.weight(small) <= l.limit*unit
}

func (l *Limiter) begin(small bool) {
	l.used += l.weight(small)
	l.working++
}

func (l *Limiter) end(small bool) {
	l.used -= l.weight(small)
	l.working--
}

// turn is of a waiter that was let in.
func (l *Limiter) turn(small bool) *Turn {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &Turn{l: l, small: small, cuts: l.cuts}
}

// admit lets those begin that fit, in their order.
func (l *Limiter) admit() {
	for at := l.waiting.Front(); at != nil; at = l.waiting.Front() {
		w := at.Value.(*waiter)
		if !l.fits(w.small) {
			return
		}
		l.begin(w.small)
		l.waiting.Remove(at)
		close(w.ready)
	}
}

// End must be called once the request is over; again, it does nothing.
func (t *Turn) End(o Outcome) {
	t.once.Do(func() {
		l := t.l
		l.mu.Lock()
		defer l.mu.Unlock()
		asked := l.waiting.Len() > 0 || l.used > (l.limit-1)*unit // more would have been of use
		l.end(t.small)
		switch o {
		case Done:
			l.succeeded(asked)
		case Refused:
			l.refuse()
		case TimedOut:
			if t.cuts == l.cuts { // later ones of the same bad moment are no news
				l.cuts++
				l.set(l.limit / 2)
			}
		case Failed:
		}
		l.admit()
	})
}

func (l *Limiter) set(limit int) {
	l.limit = max(1, min(limit, l.most))
	l.good = 0
}

// refuse goes down to what the store is still at work on, which it has not refused.
func (l *Limiter) refuse() {
	l.lenient, l.used = false, l.working*unit
	ceiling := l.working + 1
	if ceiling == l.ceiling {
		l.refused = min(l.refused+1, maxRefused)
	} else {
		l.ceiling, l.refused = ceiling, 0
	}
	l.set(min(l.limit, l.working))
}

// succeeded counts, and grows in time.
func (l *Limiter) succeeded(asked bool) {
	if !asked || l.limit == l.most {
		return
	}
	need := l.limit
	if l.limit+1 == l.ceiling {
		need <<= l.refused
	}
	if l.good++; l.good < need {
		return
	}
	l.set(l.limit + 1)
	if l.limit > l.ceiling {
		l.ceiling = 0 // it is not there any more
	}
}
