// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"fmt"
	"slices"
	"strings"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
)

// halfBeside returns the half of a checkpoint's uuid by the bitmaps of ours beside those
// that libvirt knows it by: the only ones in all images that can have been made with them.
func (def *Definition) halfBeside(disks []backup.Seen) (string, error) {
	var all []string
	for i, d := range disks {
		halves, err := def.halvesIn(&d.Judge.Image.Layers[0])
		if err != nil {
			return "", &chain.DiskError{Disk: d.Disk, Err: err}
		}
		if i == 0 {
			all = halves
		}
		all = slices.DeleteFunc(all, func(h string) bool { return !slices.Contains(halves, h) })
		if len(all) == 0 {
			return "", wrong(d.Disk, "bitmap %s is none that imgbackup made: %s has none of ours beside it that shows the same (--adopt takes another program's)",
				def.Name, d.Judge.Image.Layers[0].Record.Path)
		}
	}
	if len(all) != 1 {
		return "", fmt.Errorf("several checkpoints of imgbackup may be %s: %s (name their bitmaps)", def.Name, strings.Join(all, ", "))
	}
	return all[0], nil
}

// halvesIn are those of the bitmaps in an image that can have been made with the one that
// libvirt knows the checkpoint by.
func (def *Definition) halvesIn(l *trust.Layer) ([]string, error) {
	theirs := l.Bitmap(def.Name)
	if l.BitmapsErr != nil || theirs == nil || theirs.InUse || theirs.Problem != nil {
		return nil, l.BitmapsErr
	}
	var halves []string
	for i := range l.Bitmaps {
		b := &l.Bitmaps[i]
		half, ok := strings.CutPrefix(b.Name, def.Name+".")
		if !ok || !isHalf(half) || b.InUse || b.Problem != nil || b.Granularity != theirs.Granularity {
			continue
		}
		same, err := bitmapstore.Equal(b.Dirty, theirs.Dirty)
		if err != nil {
			return nil, err
		}
		if same {
			halves = append(halves, half)
		}
	}
	return halves, nil
}
