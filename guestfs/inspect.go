// SPDX-License-Identifier: Apache-2.0

package guestfs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
)

// OS is an operating system that was recognised on the disks. All of it is text from
// the guest.
type OS struct {
	Root     string  `json:"root"` // the device of its root file system
	Type     string  `json:"type"` // linux, windows, …
	Distro   string  `json:"distro,omitempty"`
	Product  string  `json:"product,omitempty"` // for people: Debian GNU/Linux 12
	Major    int     `json:"major,omitempty"`
	Minor    int     `json:"minor,omitempty"`
	Arch     string  `json:"arch,omitempty"`
	Hostname string  `json:"hostname,omitempty"`
	Mounts   []Mount `json:"mounts,omitempty"` // / first
}

// Mount is where a volume is mounted in the guest.
type Mount struct {
	Point  string `json:"point"`
	Device string `json:"device"`
}

// Systems returns the operating systems on the disks, sorted by root; none is no error.
func (s *Session) Systems(ctx context.Context) ([]OS, error) {
	if s.asked {
		return s.os, nil
	}
	roots, err := s.lines(ctx, "inspect-os")
	if err != nil {
		return nil, fmt.Errorf("libguestfs: inspect: %w", err)
	}
	slices.Sort(roots)
	var all []OS
	for _, root := range roots {
		o := OS{Root: root}
		for name, to := range map[string]*string{"type": &o.Type, "distro": &o.Distro, "product-name": &o.Product, "arch": &o.Arch, "hostname": &o.Hostname} {
			if *to, err = s.about(ctx, name, root); err != nil {
				return nil, err
			}
		}
		for name, to := range map[string]*int{"major-version": &o.Major, "minor-version": &o.Minor} {
			text, err := s.about(ctx, name, root)
			if err != nil {
				return nil, err
			}
			*to, _ = strconv.Atoi(text) // 0: it is not known
		}
		if o.Mounts, err = s.mountsOf(ctx, root); err != nil {
			return nil, err
		}
		all = append(all, o)
	}
	s.os, s.asked = all, true
	return all, nil
}

// about is one thing of an operating system; empty: it is not known.
func (s *Session) about(ctx context.Context, name, root string) (string, error) {
	text, err := s.text(ctx, "inspect-get-"+name, root)
	var no *CallError
	if errors.As(err, &no) || text == "unknown" {
		return "", nil
	}
	return text, err
}

// mountsOf are the file systems that the guest mounts, in an order in which they can be.
func (s *Session) mountsOf(ctx context.Context, root string) ([]Mount, error) {
	points, err := s.fields(ctx, "inspect-get-mountpoints", root)
	var no *CallError
	if errors.As(err, &no) {
		points, err = map[string]string{"/": root}, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Mount
	for _, point := range slices.Sorted(maps.Keys(points)) {
		all = append(all, Mount{Point: point, Device: points[point]})
	}
	slices.SortStableFunc(all, func(a, b Mount) int { return cmp.Compare(len(a.Point), len(b.Point)) })
	return all, nil
}
