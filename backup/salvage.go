// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qcow2"
)

// Reading what is left of a disk that fails.

// leastRead is the smallest piece that is asked for by itself, bytes: what the kernel reads
// at once, and a sector of most disks.
const leastRead = 4 << 10

// readGuest fills p with the guest's bytes at off, or with zeros where they cannot be had
// and are to be lost.
func (s *archiver) readGuest(ctx context.Context, d *disk, p []byte, off int64) error {
	err := d.image.ReadAt(ctx, p, off)
	if err == nil || !s.req.Salvage || !unreadable(err) {
		return err
	}
	if len(p) <= leastRead {
		clear(p)
		d.lost.Add(chain.Lost{Offset: off, Length: int64(len(p)), Reason: "it could not be read: " + whyUnreadable(err)})
		return nil
	}
	middle := (off + int64(len(p))/2) / leastRead * leastRead
	if middle <= off { // of little more than one
		middle += leastRead
	}
	if err := s.readGuest(ctx, d, p[:middle-off], off); err != nil {
		return err
	}
	return s.readGuest(ctx, d, p[middle-off:], middle)
}

// failing are the errors that a medium gives, or what lies between it and us, for a part of
// it. Others, as a server that is gone, say nothing of the rest.
var failing = []unix.Errno{unix.EIO, unix.ENODATA, unix.EBADMSG, unix.EILSEQ, unix.EREMOTEIO, unix.EUCLEAN}

// unreadable reports whether err says that a part of an image cannot be read, or is damaged.
func unreadable(err error) bool {
	var errno unix.Errno
	var damage *qcow2.DamageError
	return errors.As(err, &errno) && slices.Contains(failing, errno) || errors.As(err, &damage)
}

// whyUnreadable is the same for neighbours, so that they are one range.
func whyUnreadable(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}

// hintSalvage says how to go on with a disk that fails.
func hintSalvage(err error) error {
	if unreadable(err) {
		return fmt.Errorf("%w (backup --salvage saves what can still be read)", err)
	}
	return err
}

// lostOf is what could not be read of a disk. If that is all of it, something else is wrong.
func (s *archiver) lostOf(d *disk, p *DiskPlan) ([]chain.Lost, error) {
	lost := d.lost.All()
	var n int64
	for i := range lost {
		n += lost[i].Length
	}
	if n > 0 && n >= p.ReadBytes && p.Detection != ByBitmap {
		return nil, fmt.Errorf("nothing of it can be read: %s", lost[0].Reason)
	}
	if n > 0 {
		s.hooks.note("disk %s: %d bytes in %d ranges could not be read, and are lost", p.Disk, n, len(lost))
	}
	return lost, nil
}
