// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"testing"

	"golang.org/x/sys/unix"
)

// A file system that is not known to keep times is not believed.
func TestKeepsTimes(t *testing.T) {
	t.Parallel()
	for _, kind := range []uint32{unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC} {
		if !keepsTimes(kind) {
			t.Errorf("%#x is not believed", kind)
		}
	}
	for _, kind := range []uint32{
		unix.FUSE_SUPER_MAGIC, unix.NFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.CEPH_SUPER_MAGIC, unix.V9FS_MAGIC,
		unix.AFS_SUPER_MAGIC, unix.OCFS2_SUPER_MAGIC, unix.MSDOS_SUPER_MAGIC, 0, 1<<32 - 1,
	} {
		if keepsTimes(kind) {
			t.Errorf("%#x is believed", kind)
		}
	}
}
