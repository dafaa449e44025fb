// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/restore"
)

// What checkpoints have lost, as people are told.

// lostLine is one range.
func lostLine(disk string, l *chain.Lost) string {
	return fmt.Sprintf("LOST %s: %d bytes at %d: %s", disk, l.Length, l.Offset, oneLine(l.Reason))
}

// lostNote is what marks a checkpoint in a list; empty: it has lost nothing.
func lostNote(m *chain.Manifest) string {
	n := m.LostBytes()
	if n == 0 {
		return ""
	}
	return "LOST " + size(n)
}

// hintSkip says how to go on where a disk cannot be had whole.
func hintSkip(err error) error {
	var damage *restore.DamageError
	var lost *chain.LostError
	if errors.As(err, &damage) || errors.As(err, &lost) {
		return fmt.Errorf("%w (--skip-damaged restores the rest)", err)
	}
	return err
}

// notWhole reports whether the archive is what is wrong.
func notWhole(err error) bool {
	var lost *chain.LostError
	return archive.IsDamage(err) || errors.As(err, &lost)
}

// salvaged is the error of a backup that could not read all: nil if it could, or made no
// checkpoint.
func salvaged(m *chain.Manifest) error {
	if m == nil {
		return nil
	}
	if n := m.LostBytes(); n > 0 {
		return damageFound{fmt.Errorf("checkpoint %s of %s is made, but %s of guest data could not be read, and are lost", m.Checkpoint, m.Domain, size(n))}
	}
	return nil
}

// lostSome is the error of a restore that is not whole.
func lostSome(r *restore.Result) error {
	if !r.Lost() {
		return nil
	}
	var ranges int
	var bytes int64
	for _, d := range r.Disks {
		ranges += len(d.Lost)
		for _, l := range d.Lost {
			bytes += l.Length
		}
	}
	return damageFound{fmt.Errorf("not all could be restored: %s, %s of guest data, are lost, and read as zeros", count(ranges, "range"), size(bytes))}
}

// printLost lists the lost ranges among a restore's results.
func (a *app) printLost(w *checkedWriter, r *restore.Result) {
	for _, d := range r.Disks {
		for i := range d.Lost {
			w.printf("  %s\n", lostLine(d.Disk, &d.Lost[i]))
		}
	}
}

// noteLost does so where stdout is taken.
func (a *app) noteLost(r *restore.Result) {
	for _, d := range r.Disks {
		for i := range d.Lost {
			a.note(lostLine(d.Disk, &d.Lost[i]))
		}
	}
}
