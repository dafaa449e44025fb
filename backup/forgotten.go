// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"slices"

	"github.com/imgbackup/imgbackup/chain"
)

// goneOf returns those of the forgotten checkpoints of which nothing stands: one that
// was noted and not removed, or is on record again, counts as it stands.
func goneOf(forgotten, history []*chain.Manifest) []*chain.Manifest {
	stands := make(map[string]bool)
	for _, m := range history {
		stands[m.UUID] = true
		for i := range m.Disks {
			stands[m.Disks[i].Bitmap] = m.Disks[i].Bitmap != ""
		}
	}
	return slices.DeleteFunc(forgotten, func(m *chain.Manifest) bool {
		return stands[m.UUID] || slices.ContainsFunc(m.Disks, func(d chain.Disk) bool { return stands[d.Bitmap] })
	})
}

// withGone are the domain's checkpoints, those that were forgotten among them, oldest
// first.
func (s *session) withGone() []*chain.Manifest {
	all := slices.Concat(s.history, s.gone)
	chain.SortByAge(all)
	return all
}

// setStates takes over what is recorded of a disk: what stands, and what is gone.
func (d *disk) setStates(all chain.States, gone []*chain.Manifest) {
	d.states, d.gone = nil, nil
	for _, st := range all {
		if slices.Contains(gone, st.Manifest) {
			d.gone = append(d.gone, st)
		} else {
			d.states = append(d.states, st)
		}
	}
}

// forgottenBitmaps are the names of bitmaps that forgotten checkpoints of the domain
// added, each with what is known of its checkpoint. One that we would not have named so
// has another owner, too.
func (s *session) forgottenBitmaps() map[string]*chain.Manifest {
	names := make(map[string]*chain.Manifest)
	for _, m := range s.gone {
		for i := range m.Disks {
			if name := m.Disks[i].Bitmap; name == chain.BitmapName(m.Checkpoint, m.UUID) {
				names[name] = m
			}
		}
	}
	return names
}
