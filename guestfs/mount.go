// SPDX-License-Identifier: Apache-2.0

package guestfs

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// MountSystem mounts the file systems of an operating system as it does, read-only, in
// the place of whatever was mounted. What could not be mounted beside the root is told
// in missing.
func (s *Session) MountSystem(ctx context.Context, o OS) (missing []string, err error) {
	if err := s.Unmount(ctx); err != nil {
		return nil, err
	}
	s.mounted = true
	for _, m := range o.Mounts {
		_, err := s.call(ctx, "mount-ro", m.Device, m.Point)
		var no *CallError
		switch {
		case err == nil:
		case errors.As(err, &no) && m.Point != "/":
			missing = append(missing, fmt.Sprintf("%s at %s: %s", m.Device, m.Point, no.Said))
		default:
			return nil, fmt.Errorf("mount %s at %s: %w", m.Device, m.Point, err)
		}
	}
	return missing, nil
}

// MountVolume mounts one file system as /, read-only, in the place of whatever was mounted.
func (s *Session) MountVolume(ctx context.Context, device string) error {
	if err := s.Unmount(ctx); err != nil {
		return err
	}
	s.mounted = true
	if _, err := s.call(ctx, "mount-ro", device, "/"); err != nil {
		return fmt.Errorf("mount %s: %w", device, err)
	}
	return nil
}

// Unmount unmounts all that is mounted.
func (s *Session) Unmount(ctx context.Context) error {
	s.entered = nil
	if !s.mounted {
		return nil
	}
	s.mounted = false
	if _, err := s.call(ctx, "umount-all"); err != nil {
		return fmt.Errorf("unmount: %w", err)
	}
	return nil
}

// checkPath says what is wrong with a path in a guest.
func checkPath(path string) error {
	if !strings.HasPrefix(path, "/") || strings.ContainsRune(path, 0) {
		return fmt.Errorf("%.80q is no path in the guest: it must begin with /", path)
	}
	return nil
}
