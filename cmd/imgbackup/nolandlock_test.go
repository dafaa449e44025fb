// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// noLandlock is a program that becomes the one of its arguments on a kernel that has no
// Landlock: its system calls are unknown.
func noLandlock() {
	runtime.LockOSThread()
	filter := []bpf.Instruction{bpf.LoadAbsolute{Off: 0, Size: 4}} // the call's number
	for _, call := range []uint32{unix.SYS_LANDLOCK_CREATE_RULESET, unix.SYS_LANDLOCK_ADD_RULE, unix.SYS_LANDLOCK_RESTRICT_SELF} {
		filter = append(filter, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: call, SkipTrue: 1},
			bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)})
	}
	raw, err := bpf.Assemble(append(filter, bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}))
	if err != nil {
		panic(err)
	}
	all := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		all[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	prog := unix.SockFprog{Len: uint16(len(all)), Filter: &all[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0); err != nil {
		panic(err)
	}
	path, err := exec.LookPath(os.Args[1])
	if err == nil {
		err = unix.Exec(path, os.Args[1:], os.Environ())
	}
	panic(err)
}

// TestNoLandlock: a kernel without Landlock is told of to who asks, and keeps nothing from being done.
func TestNoLandlock(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	canary := filepath.Join(t.TempDir(), "canary")
	if err := os.WriteFile(canary, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	path, err := exec.LookPath("nolandlock")
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{w.backup("c1", "--verbose"), {"list", "--verbose"}, {"list"}} {
		cmd := w.child([]string{tryOpen + "=" + canary}, args...)
		cmd.Path, cmd.Args = path, append([]string{"nolandlock"}, cmd.Args...)
		o := w.outcome(cmd)
		if o.code != exitDone || !strings.Contains(o.err, "tried to open: <nil>") {
			t.Errorf("%v: exit status %d: %s", args, o.code, o.err)
		}
		const note = "note: this kernel has no Landlock: neither imgbackup nor the programs of QEMU that it runs are kept from other files"
		if verbose := args[len(args)-1] == "--verbose"; strings.Contains(o.err, note) != verbose {
			t.Errorf("%v: %s", args, o.err)
		}
	}
	w.want["c1"] = w.now
	w.verify("c1")
}
