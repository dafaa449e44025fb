// SPDX-License-Identifier: Apache-2.0

package confine

import "golang.org/x/sys/unix"

const (
	machine    = unix.AUDIT_ARCH_PPC64LE
	bigEndian  = false
	cloneFlags = 0 // which argument of clone has the flags
)

var refusedHere = []uint32{
	unix.SYS_SOCKETCALL, unix.SYS_IPC, // many calls in one, which only old C libraries make
	unix.SYS_CHMOD, unix.SYS_CHOWN, unix.SYS_LCHOWN, unix.SYS_UTIME, unix.SYS_UTIMES, unix.SYS_FUTIMESAT,
	unix.SYS_USELIB, unix.SYS_STIME, unix.SYS_KEXEC_FILE_LOAD,
}
