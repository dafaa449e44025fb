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

// Confinement is what keeps a process apart from everything else.
type Confinement struct {
	UID        uint32 // 0: it stays ours
	Groups     []uint32
	Namespaces uintptr
}

// Possible are the confinements that may be possible, the tightest first.
func Possible(groups []uint32) (all []Confinement) {
	if os.Geteuid() != 0 {
		// A user namespace of its own takes with it nothing but the right to the others.
		return []Confinement{{Namespaces: unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWIPC}, {}}
	}
	apart := uintptr(unix.CLONE_NEWNET | unix.CLONE_NEWIPC)
	uid := uint32(firstUID + rand.IntN(manyUIDs))
	return []Confinement{{uid, groups, apart}, {uid, groups, 0}, {nobody, groups, apart}, {nobody, groups, 0}}
}

func (c Confinement) apply(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL, Cloneflags: c.Namespaces}
	if c.UID != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: c.UID, Gid: c.UID, Groups: c.Groups}
	}
	if c.Namespaces&unix.CLONE_NEWUSER != 0 {
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}}
	}
}
