// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"fmt"
	"slices"

	"github.com/imgbackup/imgbackup/archive"
)

// What testifies for bitmaps (what was seen of others, where data was and where it lay in the
// image) may be damaged, and no other repository have it. The disks' data is not affected
// then; but what the records told must not be taken for never having been there.

// LoseRecords takes the records out of a disk whose objects are gone, by their keys, and
// notes that there were such. It reports whether there were.
func (d *Disk) LoseRecords(gone func(key string) bool) bool {
	before := len(d.Witnesses)
	d.Witnesses = withoutGone(d.Witnesses, gone)
	lost := len(d.Witnesses) < before
	if d.Held != nil && gone(archive.BitmapKey(d.Held.Object.Name)) {
		d.Held, lost = nil, true
	}
	if d.ClusterMap != nil && slices.ContainsFunc(d.ClusterMap.Parts, func(r archive.Ref) bool { return gone(archive.ClustersKey(r.Name)) }) {
		d.ClusterMap, lost = nil, true
	}
	d.RecordsLost = d.RecordsLost || lost
	return lost
}

func withoutGone(records []BitmapRecord, gone func(key string) bool) []BitmapRecord {
	left := slices.DeleteFunc(slices.Clone(records), func(b BitmapRecord) bool { return gone(archive.BitmapKey(b.Object.Name)) })
	if len(left) == 0 {
		return nil
	}
	return left
}

// LoseForgotten is [Disk.LoseRecords] for what forgotten checkpoints of a domain left. It
// reports whether there was any such record.
func (r *Repository) LoseForgotten(ctx context.Context, domain string, gone func(key string) bool) (bool, error) {
	if err := r.CheckWritable(); err != nil {
		return false, err
	}
	for range rememberTries {
		f, old, err := r.readForgotten(ctx, domain)
		if err != nil {
			return false, err
		}
		lost := false
		for i := range f.Checkpoints {
			p := &f.Checkpoints[i]
			for j := range p.Disks {
				d := &p.Disks[j]
				left := withoutGone(d.Witnesses, gone)
				if len(left) < len(d.Witnesses) {
					d.Witnesses, d.RecordsLost, lost = left, true, true
				}
			}
		}
		if !lost {
			return false, nil
		}
		again, err := r.putForgotten(ctx, f, old)
		if !again || err != nil {
			return true, err
		}
	}
	return false, fmt.Errorf("what stays known of forgotten checkpoints of domain %s was changed %d times by others meanwhile", domain, rememberTries)
}
