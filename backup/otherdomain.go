// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"slices"

	"github.com/imgbackup/imgbackup/chain"
)

// noteOtherDomain tells, when a domain is about to get its first checkpoint, that the
// repository has another one which is the same virtual machine, by its definition's UUID or
// by the bitmaps in its images: a name that was misspelt, or changed, begins a new chain.
// A copy of a machine does as well, rightly, so that it is no more than a note.
func (s *session) noteOtherDomain(ctx context.Context) error {
	if !s.records || len(s.listed) > 0 || s.toldOthers {
		return nil
	}
	s.toldOthers = true
	var bitmaps []string
	for _, d := range s.disks {
		for _, b := range d.image.Layers[0].Bitmaps {
			if _, ours := chain.ParseBitmapName(b.Name); ours {
				bitmaps = append(bitmaps, b.Name)
			}
		}
	}
	if s.req.DomainUUID == "" && len(bitmaps) == 0 {
		return nil
	}
	others, err := s.repo.SameMachine(ctx, s.req.Domain, s.req.DomainUUID, bitmaps)
	if err != nil {
		return err
	}
	for _, m := range others {
		why := "its definition has the same UUID"
		if name := chain.BitmapName(m.Checkpoint, m.UUID); slices.Contains(bitmaps, name) {
			why = "the bitmap " + name + " of its checkpoint " + m.Checkpoint + " is in an image"
		}
		s.hooks.note("this is the first checkpoint of domain %s, and the repository has domain %s, which seems to be the same machine (%s): if %s is but another name of it, or misspelt, back it up as %s, whose checkpoints go on; else all is well",
			s.req.Domain, m.Domain, why, s.req.Domain, m.Domain)
	}
	return nil
}
