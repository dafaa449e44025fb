// SPDX-License-Identifier: Apache-2.0

package forget

import (
	"fmt"
	"slices"

	"github.com/imgbackup/imgbackup/chain"
)

// nextBackup says what it costs a domain's next backup that checkpoints are forgotten:
// nothing, unless it would build on one of them.
func nextBackup(all, gone []*chain.Manifest) []string {
	goes := func(m *chain.Manifest) bool { return slices.Contains(gone, m) }
	newest := all[len(all)-1]
	var notes []string
	for i := range newest.Disks {
		d := &newest.Disks[i]
		if d.Bitmap == "" || d.Adopted != nil || !goes(newest) {
			continue // nothing builds on it by a bitmap, or it stays
		}
		states := chain.StatesOf(all, d.Name)
		stay := slices.ContainsFunc(states, func(st chain.DiskState) bool { return st.HasData() && !goes(st.Manifest) })
		switch base := beside(states, d); {
		case !stay:
			notes = append(notes, fmt.Sprintf("%s, disk %s: the next backup is a full one, since no archive of it stays", newest.Domain, d.Name))
		case base != nil && !goes(base):
			notes = append(notes, fmt.Sprintf("%s, disk %s: the next backup can be incremental since %s, whose bitmap %s left in the image",
				newest.Domain, d.Name, base.Checkpoint, newest.Checkpoint))
		default:
			notes = append(notes, fmt.Sprintf("%s, disk %s: the next backup reads all of it, since no bitmap of a checkpoint that stays is in the image",
				newest.Domain, d.Name))
		}
	}
	return notes
}

// beside is the archive whose bitmap the newest checkpoint left in the image beside its
// own, as its witness; nil: none, as where it had found one to be wrong.
func beside(states chain.States, newest *chain.Disk) *chain.Manifest {
	if slices.Contains([]string{"witnesses-differ", "map-contradicts", "content-contradicts", "cluster-map-contradicts", "other-disk"}, newest.ReasonCode) {
		return nil
	}
	for _, st := range states[1:] {
		if st.HasData() && slices.ContainsFunc(newest.Witnesses, func(w chain.BitmapRecord) bool {
			return w.Layer == 0 && w.Enabled && w.Name == st.Disk.Bitmap
		}) {
			return st.Manifest
		}
	}
	return nil
}
