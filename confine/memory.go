// SPDX-License-Identifier: Apache-2.0

package confine

import "golang.org/x/sys/unix"

// KeepMemory keeps what this process has in memory to it: no core of it is dumped, nor of what it
// starts, and no other process of the same user can trace it, or read its memory, environment
// and descriptors in /proc. Nothing is kept from root with all its rights. What it starts can be
// traced again, since that is another program, with a memory of its own.
//
// It is for the very beginning of main. Of such a process /proc/PID belongs to root, and with
// hidepid it does not even show.
func KeepMemory() {
	// A limit of 1 byte, unlike 0, also keeps the kernel from handing a dump to another
	// program. That there is such a limit already is as well.
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1, Max: 1})
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) // can't fail
}
