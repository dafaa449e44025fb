// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// A machine runs as a user that nobody else is, if we are root: with a number above
// those that distributions give to anyone, and chosen anew for each.
const (
	firstUID = 0x70000000
	manyUIDs = 1 << 20
	nobody   = 65534
)

// confinement is what keeps a process apart from everything else.
type confinement struct {
	uid        uint32 // 0: it stays ours
	groups     []uint32
	namespaces uintptr
}

// confinements are those that may be possible, the tightest first.
func confinements(kvm bool) (all []confinement) {
	if os.Geteuid() != 0 {
		// A user namespace of its own takes with it nothing but the right to the others.
		return []confinement{{namespaces: unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWIPC}, {}}
	}
	var groups []uint32
	if kvm {
		groups = kvmGroup()
	}
	apart := uintptr(unix.CLONE_NEWNET | unix.CLONE_NEWIPC)
	uid := uint32(firstUID + rand.IntN(manyUIDs))
	return []confinement{{uid, groups, apart}, {uid, groups, 0}, {nobody, groups, apart}, {nobody, groups, 0}}
}

// kvmGroup is the group that may open /dev/kvm, if a group may.
func kvmGroup() []uint32 {
	var st unix.Stat_t
	if unix.Stat("/dev/kvm", &st) == nil && st.Mode&0o060 == 0o060 && st.Gid != 0 {
		return []uint32{st.Gid}
	}
	if g, err := user.LookupGroup("kvm"); err == nil {
		if id, err := strconv.ParseUint(g.Gid, 10, 32); err == nil && id != 0 && uint32(id) == st.Gid {
			return []uint32{uint32(id)}
		}
	}
	return nil
}

// kvmOpens reports whether a machine could open /dev/kvm as the user that it will be.
func kvmOpens() bool {
	var st unix.Stat_t
	if unix.Stat("/dev/kvm", &st) != nil {
		return false
	}
	if os.Geteuid() == 0 {
		return st.Mode&0o006 == 0o006 || len(kvmGroup()) > 0
	}
	return unix.Access("/dev/kvm", unix.R_OK|unix.W_OK) == nil
}

func (c confinement) apply(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL, Cloneflags: c.namespaces}
	if c.uid != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: c.uid, Gid: c.uid, Groups: c.groups}
	}
	if c.namespaces&unix.CLONE_NEWUSER != 0 {
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}}
	}
}

// process is a program that was started, confined.
type process struct {
	cmd   *exec.Cmd
	said  said
	ended chan struct{}
}

// refused reports whether an error says that a confinement is not possible here.
func refused(err error) bool {
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EUSERS)
}

// start starts a program with the first of the confinements that is possible; files
// are its descriptors from 3 on.
func start(path string, args []string, files []*os.File, how []confinement) (*process, confinement, error) {
	// What we have inherited from who has started us, and is not meant for anybody else.
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) // kernels before 5.11 can't
	var last error
	for _, c := range how {
		p := &process{cmd: exec.Command(path, args...), ended: make(chan struct{})}
		p.cmd.Env = []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH")}
		p.cmd.Dir = "/"
		p.cmd.ExtraFiles = files
		p.cmd.Stdout, p.cmd.Stderr = &p.said, &p.said
		p.cmd.WaitDelay = time.Second
		c.apply(p.cmd)
		started, ended := sys.StartChild(p.cmd)
		if last = <-started; last != nil {
			if refused(last) {
				continue
			}
			return nil, c, last
		}
		go func() {
			for range ended { // how it ended is in cmd.ProcessState
			}
			close(p.ended)
		}()
		return p, c, nil
	}
	return nil, confinement{}, last
}

// limits bound what a process may use: memory and the size of files in bytes, and its
// time on a processor.
type limits struct {
	memory, file int64
	cpu          time.Duration
}

// shell is a shell that sets the limits and becomes the program that follows: another
// process of another user can't be given any.
func (l limits) shell() []string {
	script := fmt.Sprintf(`ulimit -c 0 && ulimit -n 256 && ulimit -f %d && ulimit -v %d && ulimit -t %d && exec "$@"`,
		l.file/512, l.memory/1024, int64(l.cpu/time.Second))
	return []string{"-c", script, "sh"}
}

// kill ends the process and waits for its end. Once more is no harm.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended already
	<-p.ended
}
