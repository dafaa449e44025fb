// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"time"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/qemu"
	"github.com/imgbackup/imgbackup/restore"
	"github.com/imgbackup/imgbackup/view"
)

// Step is one thing that a drill tries of a checkpoint.
type Step interface {
	// Name is what the record calls the step: one of [record.StepNames].
	Name() string
	// Run tries it. What is wrong with the checkpoint is a Result; an error says that it
	// could not be tried, for a reason that lies elsewhere (the store failed, no space, the
	// context was cancelled): then the step is skipped, with the error as its reason.
	// Whatever happens, no process, mount or socket of the step is left behind.
	Run(ctx context.Context, s *Subject) (Result, error)
}

// Result is what a step found.
type Result struct {
	Status   record.Status
	Reason   string            // a sentence for people; of a pass it may be empty
	WhatToDo string            // by a person; where it passed it is empty
	Bytes    int64             // of the guest that were read and looked at
	Details  map[string]string // names of a-z 0-9 _, for the record
	Programs map[string]string // programs that were used → their versions
	Boot     time.Duration     // of the step boot: until the guest was up; 0: it was not
	// NotApplicable says of a step that was skipped that there was nothing to try: it is
	// not missed, unless it was required by name.
	NotApplicable bool
}

// Pass is a step that passed; reason, which may be empty, says what speaks for it.
func Pass(reason string) Result { return Result{Status: record.Passed, Reason: reason} }

// Fail is a step that failed.
func Fail(reason, whatToDo string) Result {
	return Result{Status: record.Failed, Reason: reason, WhatToDo: whatToDo}
}

// Skip is a step that could not be tried.
func Skip(reason, whatToDo string) Result {
	return Result{Status: record.Skipped, Reason: reason, WhatToDo: whatToDo}
}

// Subject is the checkpoint as a step meets it.
type Subject struct {
	Repo     *chain.Repository
	Manifest *chain.Manifest
	Disks    []*chain.Disk // that are drilled, in the manifest's order, at least one

	// Restored are the disks that the step restore has written; none where it restores
	// nothing, or failed. They stay until the checkpoint's drill ends, and only what
	// reads them may open them.
	Restored []Restored

	// Scratch is an empty folder of the step's own, on the file system for scratch data,
	// which is removed when the step ends.
	Scratch string
	// Keep is a folder of the step's own: files that it leaves there are kept with the
	// evidence. Names end in .log (consoles), .png (screens) or .txt (output).
	Keep string

	Limits Limits
	Note   func(text string)          // told what a person should know at once
	Told   func(step string, n int64) // told of progress: so many more bytes of the guest

	atEnd       func(func()) // something that is to be done when the checkpoint's drill ends
	near        func(near nearby) *server
	qemuImg     qemu.Img
	serve       func(context.Context) (*Served, error)
	view        func(context.Context) (*view.Checkpoint, error)
	fault       func() error // what a client of the served disks met first; nil: nothing
	read        func() int64
	restoreTook func(ms int64) // is told how long it took until the disks were back
}

// Restored is a disk that was written to scratch space.
type Restored struct {
	Disk   string
	Path   string
	Format string // qcow2

	written *restore.Written // open until the checkpoint's drill ends
}

// Served is the checkpoint's disks over NBD, read-only, each as an export named by its
// disk, on a Unix socket that only this user can connect to. It is the same for all
// steps, and ends with the checkpoint's drill. Every byte is proven by its digest;
// what is damaged is an I/O error.
type Served struct {
	Socket string // a path short enough for any client
	Disks  []ServedDisk
}

// ServedDisk is one export.
type ServedDisk struct {
	Disk string // vda; the export's name
	Size int64  // bytes
	URI  string // nbd+unix:///vda?socket=…
}

// Limits bound what a step may take.
type Limits struct {
	Timeout time.Duration // of a step that runs programs or a guest; 0: the step's own
	Memory  int64         // of a guest, bytes; 0: the step's own
}

// Serve offers the disks over NBD, the first time that it is called.
func (s *Subject) Serve(ctx context.Context) (*Served, error) { return s.serve(ctx) }

// View opens the disks that Serve offers, to be read by the step itself.
func (s *Subject) View(ctx context.Context) (*view.Checkpoint, error) { return s.view(ctx) }

// Fault is the first error that a client of the served disks was answered with: what a
// program makes of it is no news then. nil: there was none.
func (s *Subject) Fault() error { return s.fault() }

// Read is how much clients of the served disks have read so far, bytes.
func (s *Subject) Read() int64 { return s.read() }
