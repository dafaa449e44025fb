// SPDX-License-Identifier: Apache-2.0

package guestfs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Health is what a check of a file system has found.
type Health string

const (
	Clean     Health = "clean"
	Damaged   Health = "damaged"
	Unchecked Health = "unchecked" // it could be mounted, and nothing more is known
	Unseen    Health = "unseen"    // the appliance has no programs for it: nothing is known
)

// Verdict is the outcome of a check.
type Verdict struct {
	Health Health
	Said   string // by the checking program, or why there was no check; text from outside
	// Unclean says that the guest had not unmounted it: its journal was replayed, in
	// scratch space, before the check.
	Unclean bool
}

// Check looks at a file system as its own checking program does when it may change
// nothing. Whatever its journal has is replayed before, in scratch space, as the guest
// would. All that is mounted is unmounted.
func (s *Session) Check(ctx context.Context, v Volume) (*Verdict, error) {
	if err := CheckDevice(v.Device); err != nil {
		return nil, err
	}
	if err := s.Unmount(ctx); err != nil {
		return nil, err
	}
	switch v.Type {
	case "ext2", "ext3", "ext4":
		return s.checkExt(ctx, v)
	case "xfs":
		return s.checkXFS(ctx, v)
	case "btrfs":
		return s.checkBtrfs(ctx, v)
	case "ntfs":
		return s.checkNTFS(ctx, v)
	case "vfat":
		return s.checkFAT(ctx, v)
	}
	if err := s.replay(ctx, v); err != nil {
		return damaged(err, false)
	}
	return &Verdict{Health: Unchecked, Said: "it can be mounted; there is no check of " + v.Type + " here"}, nil
}

// damaged is the verdict when a check has failed, unless it could not be made.
func damaged(err error, unclean bool) (*Verdict, error) {
	var no *CallError
	if errors.As(err, &no) {
		return &Verdict{Health: Damaged, Said: no.Said, Unclean: unclean}, nil
	}
	return nil, err
}

// replay mounts the file system, so that the kernel replays its journal, and unmounts it.
func (s *Session) replay(ctx context.Context, v Volume) error {
	s.mounted = true
	_, err := s.call(ctx, "mount-ro", v.Device, "/")
	return errors.Join(err, s.Unmount(ctx))
}

// checkExt runs a check that mends, in scratch space: whatever it mends was damaged. That
// the file system has been mounted often makes it look at all of it.
func (s *Session) checkExt(ctx context.Context, v Volume) (*Verdict, error) {
	fields, err := s.fields(ctx, "tune2fs-l", v.Device)
	if err != nil {
		return damaged(err, false)
	}
	unclean := strings.Contains(fields["Filesystem features"], "needs_recovery")
	if unclean {
		// For writing: so it leaves counts behind that are right.
		s.mounted = true
		_, err := s.call(ctx, "mount", v.Device, "/")
		if err = errors.Join(err, s.Unmount(ctx)); err != nil {
			return damaged(err, true)
		}
	}
	if _, err := s.call(ctx, "tune2fs", v.Device, "maxmountcount:1", "mountcount:9"); err != nil {
		return damaged(err, unclean)
	}
	return s.fsck(ctx, v, v.Type, unclean)
}

// fsck runs a check that mends what it finds.
func (s *Session) fsck(ctx context.Context, v Volume, kind string, unclean bool) (*Verdict, error) {
	status, err := s.text(ctx, "fsck", kind, v.Device)
	if err != nil {
		return damaged(err, unclean)
	}
	if status != "0" {
		return &Verdict{Health: Damaged, Said: "fsck." + kind + " finds errors (status " + status + ")", Unclean: unclean}, nil
	}
	return &Verdict{Health: Clean, Said: "fsck." + kind, Unclean: unclean}, nil
}

func (s *Session) checkXFS(ctx context.Context, v Volume) (*Verdict, error) {
	if ok, err := s.text(ctx, "feature-available", "xfs"); err != nil || ok != "true" {
		return &Verdict{Health: Unseen, Said: "the appliance has no XFS: install libguestfs-xfs"}, err
	}
	// A log that is not empty is replayed by mounting; what can't be mounted is damaged.
	if err := s.replay(ctx, v); err != nil {
		return damaged(err, false)
	}
	status, err := s.text(ctx, "xfs-repair", v.Device, "nomodify:true")
	if err != nil {
		return damaged(err, false)
	}
	if status != "0" {
		return &Verdict{Health: Damaged, Said: "xfs_repair -n finds errors (status " + status + ")"}, nil
	}
	return &Verdict{Health: Clean, Said: "xfs_repair -n"}, nil
}

func (s *Session) checkBtrfs(ctx context.Context, v Volume) (*Verdict, error) {
	if ok, err := s.text(ctx, "feature-available", "btrfs"); err != nil || ok != "true" {
		return &Verdict{Health: Unseen, Said: "the appliance has no Btrfs: install btrfs-progs"}, err
	}
	if err := s.replay(ctx, v); err != nil {
		return damaged(err, false)
	}
	if _, err := s.call(ctx, "btrfs-fsck", v.Device); err != nil {
		return damaged(err, false)
	}
	return &Verdict{Health: Clean, Said: "btrfs check --readonly"}, nil
}

// The answers of ntfs-3g.probe that say something else than that it can be mounted.
var ntfsProbe = map[string]string{"14": "Windows is hibernated", "15": "it was not unmounted cleanly"}

func (s *Session) checkNTFS(ctx context.Context, v Volume) (*Verdict, error) {
	if ok, err := s.text(ctx, "feature-available", "ntfs3g ntfsprogs"); err != nil || ok != "true" {
		return &Verdict{Health: Unseen, Said: "the appliance has no NTFS: install ntfs-3g"}, err
	}
	status, err := s.text(ctx, "ntfs-3g-probe", "true", v.Device)
	if err != nil {
		return damaged(err, false)
	}
	why, unclean := ntfsProbe[status]
	if status != "0" && !unclean {
		return &Verdict{Health: Damaged, Said: "ntfs-3g.probe: status " + status}, nil
	}
	if _, err := s.call(ctx, "ntfsfix", v.Device); err != nil {
		return damaged(err, unclean)
	}
	said := "ntfsfix, which looks at the main structures only"
	if unclean {
		said += "; " + why
	}
	return &Verdict{Health: Clean, Said: said, Unclean: unclean}, nil
}

// fatDirty is where a FAT has its bit that says "not unmounted", by the width that its
// boot sector names.
var fatDirty = map[string]int64{"FAT32": 0x41, "FAT16": 0x25, "FAT12": 0x25}

// checkFAT runs a check that mends, in scratch space: whatever it mends was damaged, but
// for the bit that says that it was not unmounted.
func (s *Session) checkFAT(ctx context.Context, v Volume) (*Verdict, error) {
	boot, err := s.call(ctx, "pread-device", v.Device, "512", "0")
	if err != nil {
		return damaged(err, false)
	}
	unclean := false
	for name, at := range fatDirty {
		if len(boot) == 512 && strings.HasPrefix(string(boot[0x36:]), name) || len(boot) == 512 && strings.HasPrefix(string(boot[0x52:]), name) {
			if unclean = boot[at]&1 != 0; unclean {
				if err := s.setByte(ctx, v.Device, at, boot[at]&^1); err != nil {
					return damaged(err, true)
				}
			}
			break
		}
	}
	return s.fsck(ctx, v, v.Type, unclean)
}

// setByte writes one byte of a device, into scratch space.
func (s *Session) setByte(ctx context.Context, device string, at int64, b byte) error {
	// A word of guestfish can't have a zero byte, a file can.
	path, err := s.lend("byte", []byte{b})
	if err != nil {
		return err
	}
	_, err = s.call(ctx, "upload-offset", path, device, strconv.FormatInt(at, 10))
	return err
}

// lend leaves a file in the session's folder, and returns its path for the appliance's
// programs.
func (s *Session) lend(name string, b []byte) (string, error) {
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		return "", err
	}
	if s.uid != 0 {
		if err := os.Chown(path, s.uid, s.uid); err != nil {
			return "", err
		}
	}
	return filepath.Join(s.seen, name), nil
}
