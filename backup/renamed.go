// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"slices"

	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/chain"
)

// recognize finds the recorded states of every disk, the images being open. One
// that has been renamed goes on from those under its former name: by what its
// image shows, and only if no other disk has as good a claim to them.
func (s *session) recognize() {
	former := make(map[*disk]trust.Former)
	for _, d := range s.disks {
		d.former = trust.Former{}
		d.setStates(chain.StatesOf(s.withGone(), d.req.Disk), s.gone)
		if f, ok := trust.FindFormer(trust.Look(d.image), d.states, s.history, s.requests); ok {
			former[d] = f
		}
	}
	for d, f := range former {
		rivaled := slices.ContainsFunc(s.disks, func(other *disk) bool {
			g, claims := former[other]
			return other != d && claims && g.Name == f.Name && (g.SameFile || !f.SameFile)
		})
		if !rivaled {
			d.former = f
			d.setStates(f.States(chain.StatesOf(s.withGone(), d.req.Disk), s.withGone()), s.gone)
		}
	}
}

// requests reports whether a disk of that name is part of the request.
func (s *session) requests(name string) bool {
	return slices.ContainsFunc(s.disks, func(d *disk) bool { return d.req.Disk == name })
}

// noteRenamed tells of disks that go on from what they were under another name.
func (s *session) noteRenamed() {
	for _, d := range s.disks {
		if f := d.former; f.Name != "" {
			s.hooks.note("disk %s was disk %s at checkpoint %s, as the bitmap in its image shows: it goes on from there",
				d.req.Disk, f.Name, f.At.Checkpoint)
		}
	}
}
