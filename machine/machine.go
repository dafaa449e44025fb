// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/imgbackup/imgbackup/confine"
	"github.com/imgbackup/imgbackup/domain"
	"github.com/imgbackup/imgbackup/nbd"
)

// Package tells a person where QEMU's system emulator is.
const Package = "qemu-system-x86 (Debian, Ubuntu) or qemu-system-x86-core (Fedora), qemu-x86 (SUSE)"

// ErrNotInstalled says that there is no QEMU here that could run the machine.
var ErrNotInstalled = errors.New("qemu-system-x86_64 is not installed; it is in the package " + Package)

// UnfitError says why a machine of this kind can't be made here.
type UnfitError struct{ Why, WhatToDo string }

func (e *UnfitError) Error() string { return e.Why }

// How a machine is run.
const (
	KVM = "kvm"
	TCG = "tcg" // emulated, and slower by a factor of ten or more
)

// Disk is a disk of the machine. What the guest writes goes where its device puts it.
type Disk struct {
	Name   string // its target: vda
	Size   int64  // bytes
	Device interface {
		nbd.Device
		nbd.Writer
	}
}

// Options are what a machine is started with, and what its guest is waited for with.
type Options struct {
	Definition *domain.Machine // nil: a small machine with a BIOS
	// Disks makes the disks, and is called anew where a machine has to be started once
	// more. discard gives them up.
	Disks func() (disks []Disk, discard func() error, err error)

	Loader []byte // the firmware, if it was archived; nil: the host's own
	NVRAM  []byte // its variables; nil: those that it comes with
	TPM    string // a folder with the state of its TPM, of which it gets a copy; empty: a new one
	Dir    string // an empty folder, for the session's own files
	Memory int64  // at most, bytes; 0: 2 GiB
	CPUs   int    // at most; 0: 2
	Accel  string // KVM, TCG; empty: KVM where it works

	// The guest is up when one of these has happened. At least one must be set.
	Pattern *regexp.Regexp // shows in a line of its serial console
	Agent   bool           // its guest agent answers
	Screen  bool           // its screen has settled on something that is no firmware's

	Timeout time.Duration // 0: 5 minutes, emulated 15
	Program string        // QEMU, by name or path; empty: qemu-system-x86_64
	Note    func(string)  // is told what a person should know; may be nil
	Fault   func(error)   // is told the first error of a disk; may be nil

	kvm     string        // for tests: the device; empty: [confine.KVM]
	started func(pid int) // for tests: QEMU runs, the guest not yet
}

// Result is what became of a guest.
type Result struct {
	Up     bool
	Why    string // what showed that it is up, or why it is not; a sentence
	ToDo   string // by a person, where it is not
	Broken bool   // it is not the guest's fault: nothing is known of it

	After     time.Duration // until that was known, from the start of the machine on
	FirstLine time.Duration // until the console said the first thing; 0: nothing

	Console []byte // a bounded part of what it said there
	Screen  []byte // the last screen, as a PNG; nil: there was none
	Agent   string // what the guest agent says of the operating system, as JSON
	Accel   string
	Version string   // of QEMU
	Read    int64    // by it of its disks, bytes
	Resets  int      // how often the guest began anew
	Left    []string // what of the definition the machine does not have
}

func (o *Options) kvmDevice() string { return cmp.Or(o.kvm, confine.KVM) }

func (o *Options) note(format string, args ...any) {
	if o.Note != nil {
		o.Note(fmt.Sprintf(format, args...))
	}
}

func (o *Options) timeout(accel string) time.Duration {
	switch {
	case o.Timeout > 0:
		return o.Timeout
	case accel == TCG:
		return 15 * time.Minute
	}
	return 5 * time.Minute
}
