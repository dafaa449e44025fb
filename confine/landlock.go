// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"fmt"
	"os"

	"github.com/landlock-lsm/go-landlock/landlock"
	llsyscall "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// lockFiles binds the calling thread, and what it starts, to the files that program, at
// its path, may open.
func lockFiles(program string, a Access) error {
	rules := append(everyone(),
		landlock.ROFiles(program).IgnoreIfMissing(),
		landlock.PathAccess(writing, os.DevNull),
	)
	rules = append(rules, a.rules()...)
	fd, flags, err := config().NewRulesetFD(rules...)
	if err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	if fd < 0 {
		return nil // this kernel has no Landlock
	}
	defer func() { _ = unix.Close(fd) }()
	if err := llsyscall.LandlockRestrictSelf(fd, flags); err != nil {
		return fmt.Errorf("landlock_restrict_self: %w", err)
	}
	return nil
}

// sameProcess is the erratum (landlock(7)) without whose fix a thread that may not signal
// strangers may not signal its own process, either, as Go's runtime does.
const sameProcess = 1 << 1

// config is as much of Landlock as the kernel has.
func config() landlock.Config {
	c := landlock.V9
	if errata, err := llsyscall.LandlockGetErrata(); err != nil || errata&sameProcess == 0 {
		c.Scoped = 0
	}
	return c.BestEffort()
}

func everyone() []landlock.Rule {
	return []landlock.Rule{
		landlock.RODirs(everyFolder...).IgnoreIfMissing(),
		landlock.ROFiles(everyFile...).IgnoreIfMissing(),
	}
}

// What may be done with a file, and in a folder. Nothing of that is to be run.
const (
	reading  = llsyscall.AccessFSReadFile
	writing  = reading | llsyscall.AccessFSWriteFile | llsyscall.AccessFSTruncate
	browsing = reading | llsyscall.AccessFSReadDir
	making   = browsing | writing | llsyscall.AccessFSMakeReg | llsyscall.AccessFSMakeSock | llsyscall.AccessFSRemoveFile
)

func (a Access) rules() []landlock.Rule {
	var rules []landlock.Rule
	allow := func(set landlock.AccessFSSet, path string) {
		info, err := os.Stat(path)
		if err != nil {
			return // whoever opens it will say why
		}
		if !info.IsDir() {
			set &= writing
		}
		rule := landlock.PathAccess(set, path).IgnoreIfMissing()
		if info.Mode()&os.ModeDevice != 0 {
			rule = rule.WithIoctlDev()
		}
		rules = append(rules, rule)
	}
	for _, path := range a.Read {
		allow(browsing, path)
	}
	for _, path := range a.Write {
		allow(writing, path)
	}
	for _, path := range a.Make {
		allow(making, path)
	}
	return rules
}
