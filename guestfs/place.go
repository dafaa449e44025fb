// SPDX-License-Identifier: Apache-2.0

package guestfs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ChoiceError says that it is not clear which file systems are meant.
type ChoiceError struct {
	Why     string
	Volumes []Volume // among which there is a choice
}

func (e *ChoiceError) Error() string {
	if len(e.Volumes) == 0 {
		return e.Why
	}
	return fmt.Sprintf("%s (%s)", e.Why, names(e.Volumes))
}

// Place is where paths are looked for, once it is mounted.
type Place struct {
	Disk   string // empty: that of the operating system
	Device string // a volume, as libguestfs names it; empty: the disk's root, or its only file system
}

// Mounted is what of the disks is at a place.
type Mounted struct {
	System  *OS      // whose mounts they are; nil: it is one volume
	Volume  Volume   // if it is one
	Missing []string // what could not be mounted beside the root, and why
}

// Enter mounts what is at a place, unless it is: the volume that is named; else, if the root
// of the only operating system is on that disk, all that it mounts; else the disk's only file
// system. Anything else is a *[ChoiceError].
func (s *Session) Enter(ctx context.Context, p Place) (*Mounted, error) {
	if s.entered != nil && s.place == p {
		return s.entered, nil
	}
	volumes, err := s.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	var in *Mounted
	if p.Device != "" {
		in, err = s.enterVolume(ctx, p.Device, volumes)
	} else {
		in, err = s.enterRoot(ctx, p.Disk, volumes)
	}
	if err != nil {
		return nil, err
	}
	s.entered, s.place = in, p
	return in, nil
}

// enterVolume mounts a volume, or a subvolume of one.
func (s *Session) enterVolume(ctx context.Context, device string, volumes []Volume) (*Mounted, error) {
	v, ok := Find(volumes, Base(device))
	if !ok {
		return nil, &ChoiceError{"there is no volume " + printable(device), volumes}
	}
	return &Mounted{Volume: v}, s.MountVolume(ctx, device)
}

func (s *Session) enterRoot(ctx context.Context, disk string, volumes []Volume) (*Mounted, error) {
	some := OnDisk(volumes, disk)
	if len(some) == 0 {
		return nil, &ChoiceError{"there is no file system that is known on the disk", volumes}
	}
	// Of one file system that has no parts a guest can only mount all of it.
	if len(some) == 1 && len(OnDisk(volumes, "")) == 1 && some[0].Type != "btrfs" {
		return &Mounted{Volume: some[0]}, s.MountVolume(ctx, some[0].Device)
	}
	roots, err := s.rootsOn(ctx, disk, volumes)
	if err != nil {
		return nil, err
	}
	switch {
	case len(roots) == 1:
		missing, err := s.MountSystem(ctx, roots[0])
		return &Mounted{System: &roots[0], Missing: missing}, err
	case len(roots) > 1:
		return nil, &ChoiceError{fmt.Sprintf("there are %d operating systems: name a volume", len(roots)), some}
	case len(some) == 1:
		return &Mounted{Volume: some[0]}, s.MountVolume(ctx, some[0].Device)
	}
	return nil, &ChoiceError{"no operating system is recognised, and there are several file systems: name one", some}
}

// rootsOn are the operating systems whose root is on a disk; an empty name means all.
func (s *Session) rootsOn(ctx context.Context, disk string, volumes []Volume) ([]OS, error) {
	all, err := s.Systems(ctx)
	if err != nil && !errors.As(err, new(*CallError)) {
		return nil, err
	}
	var roots []OS
	for _, o := range all {
		v, ok := Find(volumes, o.Root)
		if !ok {
			v, _ = Find(volumes, Base(o.Root))
		}
		if disk == "" || slices.Contains(v.Disks, disk) {
			roots = append(roots, o)
		}
	}
	return roots, nil
}

func names(volumes []Volume) string {
	var all []string
	for _, v := range volumes[:min(len(volumes), 20)] {
		all = append(all, v.Device)
	}
	return strings.Join(all, ", ")
}
