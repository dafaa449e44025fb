// SPDX-License-Identifier: Apache-2.0

// Package record is what a drill leaves behind: which checkpoint was tried, by whom and
// with what, what each step found, and how long it took. It is data alone, for whoever
// writes, stores, lists, proves and shows it.
//
// docs/format.md specifies how a record is stored, docs/drill.schema.json what a report
// of a run looks like. Fields are added and never change their meaning.
package record

import (
	"time"

	"github.com/imgbackup/imgbackup/chain"
)

// What a record says that it is.
const (
	Format  = "imgbackup-drill"
	Version = 1
)

// Status is how a step ended.
type Status string

// The ways in which a step ends.
const (
	Passed  Status = "passed"
	Failed  Status = "failed"
	Skipped Status = "skipped" // it could not be done, or there was nothing to do
)

// Verdict is what a drill of a checkpoint says as a whole.
type Verdict string

// The verdicts.
const (
	VerdictPassed     Verdict = "passed"     // all required steps passed, and none failed
	VerdictFailed     Verdict = "failed"     // a step failed
	VerdictIncomplete Verdict = "incomplete" // a required step was skipped: nothing is proven
)

// The names of the steps, in the order in which they are done.
const (
	StepChunks      = "chunks"
	StepRestore     = "restore"
	StepSource      = "source"
	StepImage       = "image"
	StepFilesystems = "filesystems"
	StepFiles       = "files"
	StepBoot        = "boot"
	StepCommand     = "command"
)

// StepNames are all of them, in order.
func StepNames() []string {
	return []string{StepChunks, StepRestore, StepSource, StepImage, StepFilesystems, StepFiles, StepBoot, StepCommand}
}

// Record is the drill of one checkpoint.
type Record struct {
	chain.Head

	UUID         string `json:"uuid"` // of the record; see [NewUUID]
	Run          string `json:"run"`  // UUID of the run, which may have drilled several checkpoints
	RepositoryID string `json:"repository_id"`

	// What was drilled.
	Domain         string    `json:"domain"`
	DomainUUID     string    `json:"domain_uuid,omitempty"`
	Checkpoint     string    `json:"checkpoint"`
	CheckpointUUID string    `json:"checkpoint_uuid"`
	Revision       int       `json:"revision"`        // of the manifest
	Manifest       string    `json:"manifest_sha256"` // of the manifest's bytes, hex
	Created        time.Time `json:"created"`         // of the checkpoint
	Disks          []Disk    `json:"disks"`           // that were drilled
	LeftOut        []string  `json:"left_out,omitempty"`

	// By whom, with what, and why.
	Host     Host              `json:"host"`
	Tool     string            `json:"tool"`               // imgbackup 1.0
	AskedBy  string            `json:"asked_by,omitempty"` // a person or a job
	ChosenBy string            `json:"chosen_by"`          // latest, all, random:3, or a name: why this checkpoint
	Programs map[string]string `json:"programs,omitempty"` // qemu_img, qemu_system, libguestfs → their versions

	Begun    time.Time `json:"begun"`
	Ended    time.Time `json:"ended"`
	Required []string  `json:"required"` // steps that had to pass
	Verdict  Verdict   `json:"verdict"`
	Steps    []Step    `json:"steps"`

	RTO RTO `json:"rto"`
	RPO RPO `json:"rpo"`
}

// Host is where the drill took place, as manifests name a host.
type Host struct {
	Name string `json:"name"`
	ID   string `json:"id,omitempty"`
}

// Disk is a disk that was drilled.
type Disk struct {
	Disk string   `json:"disk"`         // vda
	Size int64    `json:"virtual_size"` // bytes
	Maps []string `json:"maps"`         // SHA-256 of its maps, newest first, hex
}

// Step is what one step found.
type Step struct {
	Step     string            `json:"step"`
	Status   Status            `json:"status"`
	Reason   string            `json:"reason,omitempty"`     // why, a sentence; of a pass perhaps what speaks for it
	WhatToDo string            `json:"what_to_do,omitempty"` // by a person, where it did not pass
	Begun    time.Time         `json:"begun"`
	Duration int64             `json:"duration_ms"`
	Bytes    int64             `json:"bytes"`             // of the guest that were read and looked at
	Details  map[string]string `json:"details,omitempty"` // what was found, by short names of a-z 0-9 _
	Kept     []Kept            `json:"kept,omitempty"`    // files that were kept beside the report
}

// Kept is a file that a step kept: a console's log, a screen, a program's output.
type Kept struct {
	Name   string `json:"name"` // in the folder of the report
	Kind   string `json:"kind"` // console, screen or output
	Size   int64  `json:"size"` // bytes
	SHA256 string `json:"sha256"`
}

// RTO is how long it takes to have the disks back, as it was measured. What was not is
// left out.
type RTO struct {
	FirstByte *int64 `json:"first_byte_ms,omitempty"` // until the first byte of each disk could be read
	Boot      *int64 `json:"boot_ms,omitempty"`       // until the guest was up
	Restore   *int64 `json:"restore_ms,omitempty"`    // until all disks were written and durable
}

// RPO is how much would have been lost.
type RPO struct {
	Age         int64  `json:"age_seconds"`         // of the domain's newest archive when the drill began
	LongestGap  int64  `json:"longest_gap_seconds"` // between two archives of the domain that follow one another
	GapAfter    string `json:"gap_after,omitempty"` // the checkpoint after which that gap is
	Checkpoints int    `json:"checkpoints"`         // archives of the domain
}

// Step returns the step of a name.
func (r *Record) Step(name string) (*Step, bool) {
	for i := range r.Steps {
		if r.Steps[i].Step == name {
			return &r.Steps[i], true
		}
	}
	return nil, false
}

// Run is the report of one run of drill: what drill --json prints, and what is in
// drill.json.
type Run struct {
	Format  string    `json:"format"` // RunFormat
	Version int       `json:"version"`
	Run     string    `json:"run"` // UUID
	Begun   time.Time `json:"begun"`
	Ended   time.Time `json:"ended"`
	Status  int       `json:"status"` // the exit status that says the same
	Verdict Verdict   `json:"verdict"`
	Drills  []Drilled `json:"drills"`
	Notes   []string  `json:"notes,omitempty"`
}

// RunFormat is the format of a [Run].
const RunFormat = "imgbackup-drill-run"

// Drilled is one checkpoint of a run.
type Drilled struct {
	Record
	Stored bool `json:"stored"` // the record is in the repository
	Signed bool `json:"signed"`
}
