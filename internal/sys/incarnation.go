// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Incarnation names an open file for as long as the kernel surely has what was written to it,
// synced or not: until the machine stops, or the file's file system is unmounted. The same
// file in a later boot or mount has another one. Where the kernel does not tell (before Linux
// 6.8, or without /proc) it is empty.
func Incarnation(f *os.File) string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	var st unix.Statx_t
	const want = unix.STATX_MNT_ID_UNIQUE | unix.STATX_INO
	err = Control(f, func(fd int) error { return unix.Statx(fd, "", unix.AT_EMPTY_PATH, want, &st) })
	if err != nil || st.Mask&want != want {
		return ""
	}
	return fmt.Sprintf("%s %d %d", strings.TrimSpace(string(boot)), st.Mnt_id, st.Ino)
}
