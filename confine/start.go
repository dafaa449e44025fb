// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"strconv"

	llsyscall "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// Start starts a process that may do no more than a says. cmd's environment is the
// caller's affair: nil is ours, so set it.
//
// What is started has to be a program that is safe to start from a bound thread: cmd must
// ask for no other user and no namespaces.
func Start(cmd *exec.Cmd, a Access) (*Process, error) {
	begin := startBound
	if Off() {
		begin = func(cmd *exec.Cmd, _ Access) (_, _ <-chan error) { return sys.StartChild(cmd) }
	}
	started, ended := begin(cmd, a)
	if err := <-started; err != nil {
		return nil, err
	}
	return newProcess(cmd, ended), nil
}

// startBound is as [sys.StartChild], from a thread that is bound by what a says.
func startBound(cmd *exec.Cmd, a Access) (started, ended <-chan error) {
	begun, done := make(chan error, 1), make(chan error, 1)
	go func() {
		defer close(done)
		// Never unlocked: the runtime ends a thread whose goroutine ends so, starts none
		// from it, and runs nothing else on it.
		runtime.LockOSThread()
		if err := start(cmd, a); err != nil {
			begun <- err
			return
		}
		begun <- nil
		done <- cmd.Wait()
	}()
	return begun, done
}

// start binds the calling thread and starts the process.
func start(cmd *exec.Cmd, a Access) error {
	keepDescriptors()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("confine %s: no_new_privs: %w", cmd.Path, err)
	}
	if err := errors.Join(lockFiles(cmd.Path, a), lockCalls(a)); err != nil {
		return fmt.Errorf("confine %s: %w", cmd.Path, err)
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if err := limitMemory(cmd.Process.Pid, a.Memory); err != nil {
		_ = cmd.Process.Kill() // it may have ended already
		_ = cmd.Wait()
		return fmt.Errorf("confine %s: limit its memory: %w", cmd.Path, err)
	}
	return nil
}

// keepDescriptors sees to it that nobody inherits what we have inherited from who has
// started us. All others are ours alone from the start.
func keepDescriptors() {
	if unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	// Kernels before 5.11.
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range open {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}

// limitMemory bounds the address space of a process that has just begun.
func limitMemory(pid int, most int64) error {
	if most <= 0 {
		return nil
	}
	limit := unix.Rlimit{Cur: uint64(most), Max: uint64(most)}
	if err := unix.Prlimit(pid, unix.RLIMIT_AS, &limit, nil); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// Kernel is what this machine's kernel has of what programs are bound by.
type Kernel struct {
	Landlock int  // the version of its interface; 0: none
	Signals  bool // programs can be kept from signalling others
	Seccomp  bool // filters of system calls
}

// ThisKernel asks the kernel.
func ThisKernel() Kernel {
	version, err := llsyscall.LandlockGetABIVersion()
	if err != nil {
		version = 0
	}
	return Kernel{Landlock: version, Signals: version >= 6 && config().Scoped != 0, Seccomp: filters()}
}
