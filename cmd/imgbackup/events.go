// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/imgbackup/imgbackup/chain"
)

// eventInterval is how often progress is told, moved or not: who reads the
// stream sees that the program lives, and which disk stands still.
const eventInterval = time.Second

// event is one line of --progress json. docs/progress.md says what each holds; fields
// and events may be added, and none changes its meaning.
type event struct {
	Event   string    `json:"event"`
	Time    time.Time `json:"time"`
	Command string    `json:"command,omitempty"`
	Domain  string    `json:"domain,omitempty"`
	Disk    string    `json:"disk,omitempty"`
	State   string    `json:"state,omitempty"`
	Phase   string    `json:"phase,omitempty"`
	Done    *int64    `json:"done,omitempty"`
	Total   *int64    `json:"total,omitempty"`
	Step    string    `json:"step,omitempty"`
	Message string    `json:"message,omitempty"`
	Signal  string    `json:"signal,omitempty"`
	Wait    float64   `json:"wait_seconds,omitempty"`
	Damage  *damage   `json:"damage,omitempty"`
	Exit    *int      `json:"exit,omitempty"`
	Error   string    `json:"error,omitempty"`
}

// damage is a finding of check.
type damage struct {
	Object  string   `json:"object"`
	Affects []string `json:"affects,omitempty"`
}

// The states of a disk.
const (
	diskWaiting   = "waiting"
	diskStarted   = "started"
	diskDone      = "done"      // and what it was for has succeeded
	diskFailed    = "failed"    // it is what the command failed by
	diskAbandoned = "abandoned" // not finished, and not at fault
	diskUnknown   = "unknown"   // it may have been committed, or not
)

// events is the stream of --progress json. Its zero value writes nothing; its
// methods may be called concurrently, and on nil. A reader that goes away does not
// stop the work.
type events struct {
	saying sync.Mutex // one line to a person at a time, from several goroutines
	mu     sync.Mutex
	out    io.Writer // nil: nothing is written
	own    io.Closer // of out, to be closed at the end; nil: it is not ours
	stderr bool      // the stream has stderr for itself
	ended  bool
	stop   chan struct{}
	err    error // of the first event that could not be written

	domain string // what is at work
	disks  []*diskProgress
	whole  progressNow

	of    *events // nil: it is a stream of its own, else what it tells goes there
	forks []*events
}

type progressNow struct {
	phase       string
	done, total int64
	known       bool
	told        bool // as it is
}

type diskProgress struct {
	name  string
	state string
	progressNow
}

// start begins the stream.
func (e *events) start(out io.Writer, own io.Closer, stderr bool, command string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.out, e.own, e.stderr, e.stop = out, own, stderr, make(chan struct{})
	e.write(event{Event: "begin", Command: command})
	go e.tick(e.stop)
}

// fork returns a stream for the work on one of several domains, which goes on beside the
// others: what it tells goes to e. It is to be joined.
func (e *events) fork(domain string) *events {
	f := &events{of: e, domain: domain}
	if e == nil {
		return f
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.out == nil || e.ended {
		return f
	}
	f.out, f.stop = e.out, make(chan struct{})
	e.forks = append(e.forks, f)
	go f.tick(f.stop)
	return f
}

// join ends a fork, of which all is told.
func (e *events) join() {
	of := e.of
	if of == nil || e.stop == nil {
		return
	}
	of.mu.Lock()
	defer of.mu.Unlock()
	of.forks = slices.DeleteFunc(of.forks, func(f *events) bool { return f == e })
	close(e.stop)
}

// settleForks writes the outcome of what is still at work in forks.
func (e *events) settleForks(exit int, err error, text string) {
	e.mu.Lock()
	forks := slices.Clone(e.forks)
	e.mu.Unlock()
	for _, f := range forks {
		f.settle(exit, err, text)
	}
}

func (e *events) tick(stop chan struct{}) {
	t := time.NewTicker(eventInterval)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			e.mu.Lock()
			e.tellProgress(true)
			e.mu.Unlock()
		case <-stop:
			return
		}
	}
}

// alone calls what writes a line for a person, when no other is being written.
func (e *events) alone(write func()) {
	if e != nil {
		of := e.top()
		of.saying.Lock()
		defer of.saying.Unlock()
	}
	write()
}

// top is the stream that all goes to in the end; nil: to none.
func (e *events) top() *events {
	if e.of != nil {
		return e.of
	}
	return e
}

// hasStderr reports whether nothing but events may be written to stderr.
func (e *events) hasStderr() bool {
	if e == nil {
		return false
	}
	e = e.top()
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.stderr
}

// tell writes an event.
func (e *events) tell(v event) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.write(v)
}

// write needs mu.
func (e *events) write(v event) {
	if v.Disk != "" || v.Event == "progress" || v.Event == "step" || v.Domain == "" && e.of != nil {
		v.Domain = e.domain
	}
	if e.of != nil {
		e.of.mu.Lock()
		defer e.of.mu.Unlock()
		e.of.put(v)
		return
	}
	e.put(v)
}

// put needs mu.
func (e *events) put(v event) {
	if e.out == nil || e.ended || e.err != nil {
		return
	}
	v.Time = time.Now().UTC()
	line, err := json.Marshal(v)
	if err == nil {
		_, err = e.out.Write(append(line, '\n'))
	}
	e.err = err
}

// tellProgress writes the progress of each disk; again: also of those whose progress is
// known already. It needs mu.
func (e *events) tellProgress(again bool) {
	for _, d := range e.disks {
		if d.known && (again || !d.told) {
			e.writeProgress(&d.progressNow, d.name)
		}
	}
	if e.whole.known && (again || !e.whole.told) {
		e.writeProgress(&e.whole, "")
	}
}

// writeProgress needs mu.
func (e *events) writeProgress(p *progressNow, disk string) {
	done, total := p.done, p.total
	e.write(event{Event: "progress", Disk: disk, Phase: p.phase, Done: &done, Total: &total})
	p.told = true
}

// move notes a step, and reports whether it is worth an event of its own: a new
// phase, and its end.
func (p *progressNow) move(phase string, done, total int64) (news bool) {
	if p.known && p.phase == phase && p.total == total && done <= p.done {
		return false // or told by two goroutines, in another order than they counted
	}
	news = !p.known || p.phase != phase || done == total
	*p = progressNow{phase: phase, done: done, total: total, known: true}
	return news
}

// set notes how far the whole work is.
func (e *events) set(phase string, done, total int64) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.whole.move(phase, done, total) {
		e.writeProgress(&e.whole, "")
	}
}

// expect begins the work on some disks of a domain, in their order.
func (e *events) expect(domain string, disks ...string) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.domain, e.disks, e.whole = domain, nil, progressNow{}
	for _, name := range disks {
		e.disk(name)
	}
}

// disk needs mu.
func (e *events) disk(name string) *diskProgress {
	for _, d := range e.disks {
		if d.name == name {
			return d
		}
	}
	d := &diskProgress{name: name, state: diskWaiting}
	e.disks = append(e.disks, d)
	e.write(event{Event: "disk", Disk: name, State: diskWaiting})
	return d
}

// setDisk notes how far a disk is.
func (e *events) setDisk(name, phase string, done, total int64) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	d := e.disk(name)
	if d.state == diskWaiting {
		d.state = diskStarted
		e.write(event{Event: "disk", Disk: name, State: diskStarted, Total: &total})
	}
	if d.move(phase, done, total) {
		e.writeProgress(&d.progressNow, name)
	}
}

// diskDone writes that what a disk was for has succeeded, while others are at work.
func (e *events) diskDone(name string) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.tellProgress(false)
	e.write(event{Event: "disk", Disk: name, State: diskDone})
	e.disks = slices.DeleteFunc(e.disks, func(d *diskProgress) bool { return d.name == name })
}

// settle writes the outcome of each disk that was expected last, if that has not
// been done: the work on them has ended, with the status that an exit would have.
// err may be nil; text is what a person is told of it.
func (e *events) settle(exit int, err error, text string) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.outcomes(exit, err, text)
}

// outcomes needs mu.
func (e *events) outcomes(exit int, err error, text string) {
	if e.out == nil {
		return
	}
	e.tellProgress(false)
	at := e.faulty(exit, err)
	var unknown *chain.UnknownOutcomeError
	for _, d := range e.disks {
		v := event{Event: "disk", Disk: d.name, State: diskAbandoned}
		switch {
		case exit == exitDone:
			v.State = diskDone
		case errors.As(err, &unknown):
			v.State = diskUnknown
		case d.name == at:
			v.State, v.Error = diskFailed, text
		}
		e.write(v)
	}
	if e.disks, e.whole = nil, (progressNow{}); e.of == nil {
		e.domain = ""
	}
}

// end settles what is not settled, and writes the last event.
func (e *events) end(exit int, err error, text string) error {
	if e == nil {
		return nil
	}
	e.settleForks(exit, err, text)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.out == nil || e.ended {
		return e.err
	}
	close(e.stop)
	e.outcomes(exit, err, text)
	e.write(event{Event: "end", Exit: &exit, Error: text})
	e.ended = true
	if e.own != nil {
		e.err = errors.Join(e.err, e.own.Close())
	}
	return e.err
}

// faulty is the disk that an error is about: the one that it names, or else the one
// that was at work.
func (e *events) faulty(exit int, err error) string {
	var about chain.AboutDisk
	switch {
	case exit == exitDone, exit == exitInterrupted:
		return ""
	case errors.As(err, &about):
		return about.AboutDisk()
	}
	at := ""
	for _, d := range e.disks {
		if d.state == diskStarted && d.done < d.total {
			if at != "" {
				return "" // it might be either
			}
			at = d.name
		}
	}
	return at
}
