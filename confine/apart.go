// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// A machine runs as a user that nobody else is, if we are root: with a number above
// those that distributions give to anyone, and chosen anew for each.
const (
	firstUID = 0x70000000
	manyUIDs = 1 << 20
	nobody   = 65534
)

// Apart is what keeps a process apart from everything else.
type Apart struct {
	UID        uint32 // 0: it stays ours
	Groups     []uint32
	Namespaces uintptr // CLONE_NEW…
}

// WaysApart are those that may be possible, the tightest first.
func WaysApart(groups []uint32) (all []Apart) {
	if os.Geteuid() != 0 {
		// A user namespace of its own takes with it nothing but the right to the others.
		return []Apart{{Namespaces: unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWIPC}, {}}
	}
	apart := uintptr(unix.CLONE_NEWNET | unix.CLONE_NEWIPC)
	uid := uint32(firstUID + rand.IntN(manyUIDs))
	return []Apart{{uid, groups, apart}, {uid, groups, 0}, {nobody, groups, apart}, {nobody, groups, 0}}
}

// apply leaves a user namespace without a map of its users: nobody in it is anybody, files are
// opened by who we are all the same, and the kernel would not take a map from a process that lets
// nobody trace it ([KeepMemory]).
func (c Apart) apply(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL, Cloneflags: c.Namespaces}
	if c.UID != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: c.UID, Gid: c.UID, Groups: c.Groups}
	}
}
