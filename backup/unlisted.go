// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"

	"github.com/imgbackup/imgbackup/chain"
)

// confirmHistory asks by name for the checkpoints whose bitmaps the images have and whose
// manifests were not listed: a backup that begins anew, or goes on from too old a state,
// because a store's listing leaves something out, would weave a second chain. Most often
// there are none to ask for: then the bitmaps are another repository's, or left over.
func (s *session) confirmHistory(ctx context.Context) error {
	known := s.oursAnywhere()
	for _, d := range s.disks {
		for _, b := range d.image.Layers[0].Bitmaps {
			name, ours := chain.ParseBitmapName(b.Name)
			if !ours || known[b.Name] != nil || s.listed[name] {
				continue
			}
			added := func(m *chain.Manifest) bool { return chain.BitmapName(m.Checkpoint, m.UUID) == b.Name }
			if err := s.repo.CheckListed(ctx, s.req.Domain, name, added); err != nil {
				return &chain.DiskError{Disk: d.req.Disk, Err: err}
			}
		}
	}
	return nil
}
