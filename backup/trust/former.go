// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"slices"
	"time"

	"github.com/imgbackup/imgbackup/chain"
)

// Former is what a disk was called before, and the evidence for it.
type Former struct {
	Name string
	At   *chain.Manifest // the newest checkpoint whose bitmap the image carries
	// SameFile says that the image is the file, or stands at the path, that was
	// the disk's at the checkpoint. Otherwise it is a copy of it.
	SameFile bool
}

// FindFormer finds out whether a disk had another name at the newest checkpoint
// whose bitmap its image carries, as it has when a VM's disk was moved to
// another bus. own are the states of the disk under its own name, history the
// manifests of its domain, and requested reports whether a disk of a name is
// backed up at the same time: then that one goes on under its name.
//
// All disks of a checkpoint carry bitmaps of one name. So where there were
// several, only the one whose file the image is counts.
func FindFormer(image *Image, own chain.States, history []*chain.Manifest, requested func(disk string) bool) (Former, bool) {
	at, layer := newestBitmap(image, history)
	if at == nil {
		return Former{}, false
	}
	if _, known := own.WithUUID(at.UUID); known {
		return Former{}, false
	}
	disks := slices.DeleteFunc(slices.Clone(at.Disks), func(d chain.Disk) bool { return d.Bitmap == "" })
	former := Former{At: at}
	if was := layer.diskOf(disks, at.Created); was != nil {
		former.Name, former.SameFile = was.Name, true
	} else if len(disks) == 1 {
		former.Name = disks[0].Name
	}
	return former, former.Name != "" && !requested(former.Name)
}

// newestBitmap returns the newest manifest that names a bitmap of the image, and
// the layer that it is in.
func newestBitmap(image *Image, history []*chain.Manifest) (*chain.Manifest, *Layer) {
	for _, m := range slices.Backward(history) {
		for i := range m.Disks {
			for j := range image.Layers {
				if name := m.Disks[i].Bitmap; name != "" && m.Disks[i].Adopted == nil && image.Layers[j].Bitmap(name) != nil {
					return m, &image.Layers[j]
				}
			}
		}
	}
	return nil, nil
}

// diskOf returns the one of some disks, of a checkpoint that was created then,
// whose image the layer was; nil: it was none of them. A file tells more than its
// path: files are renamed.
func (l *Layer) diskOf(disks []chain.Disk, created time.Time) *chain.Disk {
	sameFile := func(d chain.Disk) bool {
		return d.Source.Device == l.Record.Device && d.Source.Inode == l.Record.Inode
	}
	samePath := func(d chain.Disk) bool { return d.Source.Path == l.Record.Path }
	tests := []func(chain.Disk) bool{sameFile, samePath}
	// The time is cut to whole seconds.
	if l.Born.After(created.Add(time.Second)) {
		// The file was not there yet: its inode number may have been any file's.
		tests = tests[1:]
	}
	for _, same := range tests {
		if i := slices.IndexFunc(disks, same); i >= 0 {
			return &disks[i]
		}
	}
	return nil
}

// States are the states of the disk under its former name, and those that it has
// had since under its own. Of a checkpoint that has disks of both names, the one
// of the former name is meant.
func (f Former) States(own chain.States, history []*chain.Manifest) chain.States {
	states := chain.StatesOf(history, f.Name)
	for _, st := range own {
		if _, both := states.WithUUID(st.Manifest.UUID); !both && st.Manifest.Sequence > f.At.Sequence {
			states = append(states, st)
		}
	}
	slices.SortStableFunc(states, func(a, b chain.DiskState) int {
		return int(b.Manifest.Sequence - a.Manifest.Sequence)
	})
	return states
}
