// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"
)

// Process is who wrote a lease or an intent: a process, on one boot of one host.
// Process ids are used again, and mean nothing outside of their namespace.
type Process struct {
	Host         Host   `json:"host"`
	BootID       string `json:"boot_id,omitempty"` // empty where the kernel tells none
	PID          int    `json:"pid"`
	PIDNamespace string `json:"pid_namespace,omitempty"`
	ProcessStart int64  `json:"process_start,omitempty"` // ticks since boot; 0: not known
}

// Self returns this process, as the repository is told who writes.
func (r *Repository) Self() (Process, error) { return self(thisRoot(), r.HostID) }

func self(root fs.FS, hostID string) (p Process, err error) {
	if p.Host, err = currentHost(root, hostID); err != nil {
		return p, err
	}
	if p.BootID, err = bootID(root); err != nil {
		return p, err
	}
	p.PID = os.Getpid()
	if p.PIDNamespace, err = pidNamespace(root); err != nil {
		return p, err
	}
	stat, err := statProcess(root, p.PID)
	if err != nil {
		return p, fmt.Errorf("find out when this process began: %w", err)
	}
	p.ProcessStart = stat.start
	return p, nil
}

func (p *Process) validate(c *checker) {
	p.Host.validate(c)
	c.text("boot_id", p.BootID, maxShort)
	c.text("pid_namespace", p.PIDNamespace, maxShort)
	c.atLeast("pid", int64(p.PID), 0)
	c.atLeast("process_start", p.ProcessStart, 0)
}

// Fate is what can be known of a process.
type Fate int

// The fates. Only FateEnded allows what must not be done beside it.
const (
	FateUnknown Fate = iota // it can't be seen from here
	FateAlive
	FateEnded
)

func (f Fate) String() string {
	return [...]string{FateUnknown: "unknown", FateAlive: "alive", FateEnded: "ended"}[f]
}

// SameMachine reports whether other runs, or ran, on p's machine, as far as that
// is certain. A boot has an id of its own, so that containers of one machine know
// each other by it, whatever they are named.
func (p Process) SameMachine(other Process) bool {
	return p.sameBoot(other) || p.Host.Is(other.Host)
}

func (p Process) sameBoot(other Process) bool { return p.BootID != "" && p.BootID == other.BootID }

// Fate returns what became of other, as this process p sees it.
func (p Process) Fate(other Process) Fate { return p.fate(thisRoot(), other) }

func (p Process) fate(root fs.FS, other Process) Fate {
	switch {
	case p.sameBoot(other):
		return p.fateOfPID(root, other)
	case p.BootID != "" && other.BootID != "" && p.Host.Is(other.Host):
		return FateEnded // by a restart
	}
	return FateUnknown
}

// fateOfPID judges a process of the same boot.
func (p Process) fateOfPID(root fs.FS, other Process) Fate {
	switch {
	case p.PIDNamespace == "" || other.PIDNamespace == "":
		return FateUnknown
	case p.PIDNamespace != other.PIDNamespace:
		return p.fateOfNamespace(root, other.PIDNamespace)
	case other.PID <= 0 || other.ProcessStart <= 0:
		return FateUnknown
	}
	stat, err := statProcess(root, other.PID)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// With hidepid, others' processes don't show, nor do ours, which nobody may trace:
		// believe it only where something that is always there does, and the kernel knows
		// none by that number, either.
		if _, err := statProcess(root, 1); err != nil || !errors.Is(syscall.Kill(other.PID, 0), syscall.ESRCH) {
			return FateUnknown
		}
		return FateEnded
	case err != nil:
		return FateUnknown
	case stat.start != other.ProcessStart:
		return FateEnded // its id is used again
	case stat.over:
		return FateEnded
	}
	return FateAlive
}

// initialNamespace is the namespace of process ids that all others lie in; its number
// is the same in every Linux.
const initialNamespace = "pid:[4026531836]"

// fateOfNamespace judges a process in another namespace, which has a container's ids:
// from the initial one all processes are seen, and one without any has ended. That
// takes the right to look at each of them.
func (p Process) fateOfNamespace(root fs.FS, namespace string) Fate {
	if p.PIDNamespace != initialNamespace {
		return FateUnknown
	}
	entries, err := fs.ReadDir(root, "proc")
	if err != nil {
		return FateUnknown
	}
	seen := false // the first process, which is always there
	for _, e := range entries {
		if strings.Trim(e.Name(), "0123456789") != "" {
			continue
		}
		its, err := fs.ReadLink(root, path.Join("proc", e.Name(), "ns/pid"))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // it has ended since
		case err != nil, its == namespace:
			return FateUnknown
		}
		seen = seen || e.Name() == "1"
	}
	if !seen {
		return FateUnknown
	}
	return FateEnded
}

func pidNamespace(root fs.FS) (string, error) {
	s, err := fs.ReadLink(root, "proc/self/ns/pid")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("find out the namespace of process ids: %w", err)
	}
	return readable(s, maxShort), nil
}

// processStat is what the kernel tells of a process.
type processStat struct {
	start int64 // ticks since boot
	over  bool  // it has ended, and its parent has not asked for its status yet
}

// statProcess reads what proc_pid_stat(5) describes. An absent process is fs.ErrNotExist.
// It is asked of the first thread, which tells the same: qemu-user answers /proc/PID/stat
// itself, with another start for each thread.
func statProcess(root fs.FS, pid int) (s processStat, err error) {
	id := strconv.Itoa(pid)
	name := path.Join("proc", id, "task", id, "stat")
	data, err := fs.ReadFile(root, name)
	if err != nil {
		return s, err
	}
	// The second field is the program's name in parentheses, and may hold both.
	_, rest, ok := strings.Cut(string(data[max(0, bytes.LastIndexByte(data, ')')):]), ") ")
	fields := strings.Fields(rest) // from the third on
	if !ok || len(fields) < 20 {
		return s, fmt.Errorf("/%s is not as expected", name)
	}
	if s.start, err = strconv.ParseInt(fields[19], 10, 64); err != nil {
		return s, fmt.Errorf("/%s: %w", name, err)
	}
	state, threads := fields[0], fields[17]
	s.over = (state == "Z" || state == "X") && (threads == "0" || threads == "1")
	return s, nil
}
