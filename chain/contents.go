// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"slices"

	"github.com/imgbackup/imgbackup/archive"
)

// contentsOf bounds the checkpoints whose small objects are looked through for equal ones.
const contentsOf = 64

// Contents are the small objects that the newest of a domain's manifests name, which begin with the
// oldest, by what they hold, as far as that is on record. A plain repository finds equal content by
// the name of its object.
func Contents(history []*Manifest) archive.Contents {
	all := make(archive.Contents)
	for _, m := range slices.Backward(history[max(0, len(history)-contentsOf):]) {
		for i := range m.Files {
			all.Add(m.Files[i].SHA256, m.Files[i].Object)
		}
		for i := range m.Disks {
			d := &m.Disks[i]
			for _, b := range d.Records() {
				all.Add(b.Content, b.Object)
			}
			if k := d.ClusterMap; k != nil && len(k.Contents) == len(k.Parts) {
				for i := range k.Parts {
					all.Add(k.Contents[i], k.Parts[i])
				}
			}
		}
	}
	return all
}
