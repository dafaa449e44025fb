// SPDX-License-Identifier: Apache-2.0

package chain

import "slices"

// DiskState is one recorded state of a disk: archived, or a checkpoint without
// data.
type DiskState struct {
	Manifest *Manifest
	Disk     *Disk // of the manifest
}

// HasData reports whether the disk's data was archived.
func (s DiskState) HasData() bool { return len(s.Disk.Maps) > 0 }

// States are recorded states of one disk, newest first.
type States []DiskState

// StatesOf returns the states of a disk in a domain's manifests, which begin
// with the oldest, as [Repository.Manifests] returns them. Before a checkpoint
// that says that the disk was renamed, those under its former name are meant.
func StatesOf(history []*Manifest, disk string) States {
	var states States
	for _, m := range slices.Backward(history) {
		if d, ok := m.Disk(disk); ok {
			states = append(states, DiskState{Manifest: m, Disk: d})
			if d.RenamedFrom != "" {
				disk = d.RenamedFrom
			}
		}
	}
	return states
}

// StatesOfBoth returns the states of a disk that a checkpoint has, and whether
// another checkpoint has the disk, too, be it under another name.
func StatesOfBoth(history []*Manifest, m *Manifest, disk string, other *Manifest) (States, bool) {
	names := []string{disk}
	for i := range other.Disks {
		names = append(names, other.Disks[i].Name)
	}
	for _, name := range names {
		states := StatesOf(history, name)
		st, has := states.WithUUID(m.UUID)
		if _, both := states.WithUUID(other.UUID); both && has && st.Disk.Name == disk {
			return states, true
		}
	}
	return nil, false
}

// WithData returns the states whose data was archived.
func (s States) WithData() States {
	return slices.DeleteFunc(slices.Clone(s), func(st DiskState) bool { return !st.HasData() })
}

// Named returns the state at the checkpoint of that name.
func (s States) Named(checkpoint string) (DiskState, bool) {
	return s.find(func(m *Manifest) bool { return m.Checkpoint == checkpoint })
}

// WithUUID returns the state at the checkpoint of that UUID.
func (s States) WithUUID(uuid string) (DiskState, bool) {
	return s.find(func(m *Manifest) bool { return m.UUID == uuid })
}

func (s States) find(is func(*Manifest) bool) (DiskState, bool) {
	i := slices.IndexFunc(s, func(st DiskState) bool { return is(st.Manifest) })
	if i < 0 {
		return DiskState{}, false
	}
	return s[i], true
}

// Bitmaps returns the names of the bitmaps that the states added to the disk's
// image, each with the manifest that names it.
func (s States) Bitmaps() map[string]*Manifest {
	names := make(map[string]*Manifest)
	for _, st := range slices.Backward(s) {
		if st.Disk.Bitmap != "" {
			names[st.Disk.Bitmap] = st.Manifest
		}
	}
	return names
}

// SmallestSince is the smallest virtual size, bytes, among size and those that
// the disk had in st and in any state since. When an adopted checkpoint was made only
// another program's clock tells, so that all states count.
func (s States) SmallestSince(st DiskState, size int64) int64 {
	for _, later := range s {
		if later.Manifest.Sequence >= st.Manifest.Sequence || st.Disk.Adopted != nil {
			size = min(size, later.Disk.Size)
		}
	}
	return size
}
