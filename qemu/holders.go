// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// lockHolders names the processes that hold a lock on byte b of the file: " (qemu-nbd, process
// 123)". Processes of other users may not be visible, and this one, which asks since it wants
// the lock, is left out; "" when none is found.
func lockHolders(file *os.File, b int64) string {
	return holders(file, strconv.Itoa(os.Getpid()), func(kind string, start, end int64) bool {
		return kind != "FLOCK" && start <= b && b <= end
	})
}

// flockHolders names the processes that hold a flock on the file, likewise.
func flockHolders(file *os.File) string {
	if names := holders(file, "", func(kind string, _, _ int64) bool { return kind == "FLOCK" }); names != "" {
		return names
	}
	return ownHolders(file)
}

// ownHolders names other runs of this program that hold a flock on the file: they let
// nobody look at their open files. The kernel's list of locks tells whose they are, and of
// what inode; the name of the program has to do for the device.
func ownHolders(file *os.File) string {
	st, err := sys.Stat(file)
	if err != nil {
		return ""
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return ""
	}
	self := command(strconv.Itoa(os.Getpid()))
	var names []string
	for line := range strings.Lines(string(locks)) {
		// As "12: FLOCK  ADVISORY  WRITE 4711 fe:01:1234 0 EOF".
		fields := strings.Fields(line)
		if len(fields) != 8 || fields[1] != "FLOCK" || !strings.HasSuffix(fields[5], ":"+strconv.FormatUint(st.Ino, 10)) {
			continue
		}
		if pid := fields[4]; self != "" && command(pid) == self {
			names = append(names, self+", process "+pid)
		}
	}
	return parenthesize(names)
}

// command is the name of the program that a process runs, or "".
func command(pid string) string {
	comm, err := os.ReadFile("/proc/" + pid + "/comm")
	if err != nil {
		return ""
	}
	return strings.Trim(strconv.Quote(strings.TrimSuffix(string(comm), "\n")), `"`)
}

func parenthesize(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return fmt.Sprintf(" (%s)", strings.Join(names, "; "))
}

// holders looks into the open files of all processes. It compares the files themselves: the device
// numbers in lock lists are not those of stat on every file system. The process but is left out.
func holders(file *os.File, but string, match func(kind string, start, end int64) bool) string {
	want, err := file.Stat()
	if err != nil {
		return ""
	}
	infos, err := filepath.Glob("/proc/[0-9]*/fdinfo/[0-9]*")
	if err != nil {
		return ""
	}
	var names []string
	seen := make(map[string]bool)
	for _, path := range infos {
		parts := strings.Split(path, "/") // "", proc, pid, fdinfo, fd
		pid, fd := parts[2], parts[4]
		if seen[pid] || pid == but {
			continue
		}
		// The lock list first: most files have none, and to stat some of them may wait for a
		// server.
		info, err := os.ReadFile(path)
		if err != nil || !hasLock(string(info), match) {
			continue
		}
		if got, err := os.Stat("/proc/" + pid + "/fd/" + fd); err != nil || !os.SameFile(got, want) {
			continue
		}
		seen[pid] = true
		name := "process " + pid
		if program := command(pid); program != "" {
			name = program + ", " + name
		}
		names = append(names, name)
	}
	return parenthesize(names)
}

// hasLock looks for a lock in the text of a /proc/PID/fdinfo/FD, whose lines are like
// "lock:	1: OFDLCK  ADVISORY  READ -1 08:01:1234 100 101".
func hasLock(info string, match func(kind string, start, end int64) bool) bool {
	for line := range strings.Lines(info) {
		fields := strings.Fields(line)
		if len(fields) != 9 || fields[0] != "lock:" {
			continue
		}
		start, err := strconv.ParseInt(fields[7], 10, 64)
		if err != nil {
			continue
		}
		end := int64(1<<63 - 1)
		if fields[8] != "EOF" {
			if end, err = strconv.ParseInt(fields[8], 10, 64); err != nil {
				continue
			}
		}
		if match(fields[2], start, end) {
			return true
		}
	}
	return false
}

// pathHolders names the processes that hold what makes QEMU refuse to open the image for writing.
func pathHolders(path string) string {
	file, err := openToLock(path)
	if err != nil {
		return ""
	}
	defer closeRead(file)
	return lockHolders(file, lockUnsharedWrite)
}
