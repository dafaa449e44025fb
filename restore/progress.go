// SPDX-License-Identifier: Apache-2.0

package restore

import "sync"

// Phase says what is being done.
type Phase string

// The phases that each disk goes through.
const (
	Writing   Phase = "writing"
	Syncing   Phase = "syncing"
	Verifying Phase = "verifying"
)

// Event is a step of progress.
type Event struct {
	Disk  string
	Phase Phase
	// Done and Total count the bytes of guest data of all disks that have been
	// and are to be written and, with Verify, read back.
	Done, Total int64
	// DiskDone and DiskTotal are those of Disk.
	DiskDone, DiskTotal int64
	// Warning, when set, is for a person to read; nothing else has changed.
	Warning string
}

// progress counts what is done and tells it on.
type progress struct {
	mu    sync.Mutex
	event Event
	tell  func(Event) // may be nil
}

// begin begins a phase of a disk, which in all has so many bytes to go through.
func (p *progress) begin(disk string, phase Phase, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if disk != p.event.Disk {
		p.event.DiskDone, p.event.DiskTotal = 0, total
	}
	p.event.Disk, p.event.Phase = disk, phase
	p.report(p.event)
}

func (p *progress) add(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.event.Done += n
	p.event.DiskDone += n
	p.report(p.event)
}

func (p *progress) warn(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.event
	e.Warning = text
	p.report(e)
}

func (p *progress) report(e Event) {
	if p.tell != nil {
		p.tell(e)
	}
}
