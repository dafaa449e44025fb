// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"fmt"
	"os"

	"github.com/landlock-lsm/go-landlock/landlock"
	llsyscall "github.com/landlock-lsm/go-landlock/landlock/syscall"
)

// Self is what is left to this process of files.
type Self struct {
	Read  []string // files, and folders with all that is in them
	Write []string // likewise: files are made, replaced and removed in folders
	Clear []string // folders in which files may be removed
	Run   []string // programs beside those in the system's folders
}

// ourFiles are what a Go program reads when it feels like it: times, names of users and hosts,
// certificates, which machine this is, and what the kernel tells.
var (
	ourFolders = []string{"/usr/share", "/etc/ssl", "/etc/pki", "/etc/ca-certificates", "/proc", "/sys/fs/cgroup", "/sys/devices"}
	ourFiles   = []string{"/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/hosts", "/etc/localtime", "/etc/machine-id", "/var/lib/dbus/machine-id"}
	ourDevices = []string{os.DevNull, "/dev/urandom", "/dev/random", "/dev/tty"}
)

// keeping is all that may be done with files in a folder, but to run them.
const keeping = making | llsyscall.AccessFSMakeDir | llsyscall.AccessFSRemoveDir | llsyscall.AccessFSRefer

// Restrict takes from this process, and from all that it starts, the files that s does not
// name, for good: it reads no others, and writes none, whatever it is made to do by what it has read or by
// who talks to it. Programs are started from the system's folders, or are named. What it has open stays so. It
// does as much as the kernel can; nothing, where that has no Landlock, or IMGBACKUP_CONFINE=off.
func Restrict(s Self) error {
	if Off() {
		return nil
	}
	rules := []landlock.Rule{
		landlock.RODirs(everyFolder...).IgnoreIfMissing(),
		landlock.RODirs(ourFolders...).IgnoreIfMissing(),
		landlock.ROFiles(everyFile...).IgnoreIfMissing(),
		landlock.ROFiles(ourFiles...).IgnoreIfMissing(),
		landlock.RWFiles(ourDevices...).IgnoreIfMissing(),
		landlock.ROFiles(s.Run...).IgnoreIfMissing(),
	}
	rules = append(rules, Access{Read: s.Read}.rules()...)
	for _, path := range s.Write {
		info, err := os.Stat(path)
		switch {
		case err != nil: // whoever opens it will say why
		case info.IsDir():
			rules = append(rules, landlock.PathAccess(keeping, path).IgnoreIfMissing())
		default:
			rules = append(rules, Access{Write: []string{path}}.rules()...)
		}
	}
	for _, path := range s.Clear {
		rules = append(rules, landlock.PathAccess(llsyscall.AccessFSRemoveFile, path).IgnoreIfMissing())
	}
	if err := landlock.V9.BestEffort().RestrictPaths(rules...); err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	return nil
}
