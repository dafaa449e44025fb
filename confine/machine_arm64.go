// SPDX-License-Identifier: Apache-2.0

package confine

import "golang.org/x/sys/unix"

const (
	machine    = unix.AUDIT_ARCH_AARCH64
	bigEndian  = false
	cloneFlags = 0 // which argument of clone has the flags
)

var refusedHere = []uint32{unix.SYS_KEXEC_FILE_LOAD}
