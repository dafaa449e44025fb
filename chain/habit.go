// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"time"

	"github.com/imgbackup/imgbackup/habit"
)

// Found is what the backup of the disk found; created is when.
func (d *Disk) Found(created time.Time) habit.Found {
	return habit.Found{
		Time: created, Full: d.Mode == ModeFull, Data: d.DataBytes, New: max(d.DataBytes-d.ReusedBytes, 0),
		Stored: d.StoredBytes, Zeros: d.ZeroBytes > 0,
	}
}

// Unusual says what is unlike what the backups of the disk before found.
func (m *Manifest) Unusual(d *Disk, limits habit.Limits) []habit.Finding {
	if m.Kind != KindArchive || d.Habit == nil {
		return nil
	}
	return limits.Judge(*d.Habit, d.Found(m.Created))
}

// HabitOf is the habit of the backups of a disk in a domain's history, oldest first. It
// is that of the newest archive that has the disk, and what that found.
func HabitOf(history []*Manifest, disk string) *habit.Habit {
	for i := len(history) - 1; i >= 0; i-- {
		m := history[i]
		if d, ok := m.Disk(disk); ok && m.Kind == KindArchive {
			var before habit.Habit
			if d.Habit != nil {
				before = *d.Habit
			}
			after := before.After(d.Found(m.Created))
			return &after
		}
	}
	return nil
}
