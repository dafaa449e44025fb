// SPDX-License-Identifier: Apache-2.0

package record

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
)

// State is how a record stands to the repository as it is now.
type State string

// The states.
const (
	Stands     State = "stands"     // the manifest is the very one that was drilled
	Revised    State = "revised"    // a later revision, of the same maps: other words or tags
	Repacked   State = "repacked"   // a later revision with other maps, of the same disks, or a copy with such
	Copied     State = "copied"     // it was drilled in another repository: the maps are the same, or made of them
	Forgotten  State = "forgotten"  // the checkpoint is gone
	Unread     State = "unread"     // nothing of the checkpoint could be read when it was to be drilled
	Contradict State = "contradict" // the repository holds another checkpoint than was drilled
)

// Compare compares a record with its checkpoint as it is now, and says what that means.
// The error is the store's, or says that the manifest cannot be read.
func Compare(ctx context.Context, repo *chain.Repository, r *Record) (State, string, error) {
	slot, err := repo.Slot(ctx, r.Domain, r.Checkpoint)
	if err != nil && !errors.Is(err, chain.ErrNoCheckpoint) {
		return "", "", err
	}
	if err != nil || slot.Manifest == nil || slot.Manifest.UUID != r.CheckpointUUID {
		return Forgotten, "the checkpoint is no longer in the repository", nil
	}
	m := slot.Manifest
	if slot.Digest().String() == r.Manifest {
		return Stands, "the checkpoint is just as it was drilled", nil
	}
	if r.Manifest == "" {
		return Unread, "the checkpoint could not be read when it was to be drilled: the record says nothing of its data", nil
	}
	elsewhere, madeOf := r.RepositoryID != repo.Config.ID, madeOf(m, r.RepositoryID)
	same := !slices.ContainsFunc(r.Disks, func(d Disk) bool { return !sameMaps(m, d, madeOf) })
	switch {
	case elsewhere && same:
		return Copied, "it was drilled in repository " + r.RepositoryID + ", of which this has a copy: the same maps, or made of them", nil
	case elsewhere && sameDisks(m, r.Disks):
		return Repacked, "it was drilled in repository " + r.RepositoryID + "; this has other maps of the same disks; a new drill proves them", nil
	case m.Revision > r.Revision && same:
		return Revised, fmt.Sprintf("the manifest is of revision %d, and %d was drilled: the same maps, in other words", m.Revision, r.Revision), nil
	case m.Revision > r.Revision && sameDisks(m, r.Disks):
		return Repacked, fmt.Sprintf("the manifest is of revision %d, and %d was drilled: it was repacked or repaired since, and has other maps of the same disks; a new drill proves them",
			m.Revision, r.Revision), nil
	}
	return Contradict, fmt.Sprintf("the manifest, of revision %d, is not the one that was drilled, of revision %d", m.Revision, r.Revision), nil
}

// madeOf says of which maps of a repository those here were made, if this is a copy with other keys.
func madeOf(m *chain.Manifest, repository string) map[archive.Digest]archive.Digest {
	made := make(map[archive.Digest]archive.Digest)
	if f := m.CopiedFrom; f != nil && f.Repository == repository {
		for _, o := range f.Objects {
			made[o.Name] = o.Of
		}
	}
	return made
}

func sameMaps(m *chain.Manifest, d Disk, madeOf map[archive.Digest]archive.Digest) bool {
	now, ok := m.Disk(d.Disk)
	if !ok || now.Size != d.Size || len(now.Maps) != len(d.Maps) {
		return false
	}
	for i, ref := range now.Maps {
		name := ref.Name
		if of, ok := madeOf[name]; ok {
			name = of
		}
		if name.String() != d.Maps[i] {
			return false
		}
	}
	return true
}

func sameDisks(m *chain.Manifest, disks []Disk) bool {
	return !slices.ContainsFunc(disks, func(d Disk) bool {
		now, ok := m.Disk(d.Disk)
		return !ok || now.Size != d.Size
	})
}
