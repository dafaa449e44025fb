// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
)

// hostSalt makes the host's id useless for anything else, as machine-id(5) asks.
const hostSalt = "imgbackup host id, version 1\n"

// CurrentHost returns this machine, and the id of its present boot, "" where it
// has none.
func CurrentHost() (host Host, bootID string) {
	return currentHost(os.DirFS("/"))
}

func currentHost(root fs.FS) (Host, string) {
	host := Host{Name: "unknown"}
	if name := readWord(root, "proc/sys/kernel/hostname"); name != "" {
		host.Name = readable(name, maxShort)
	}
	for _, file := range []string{"etc/machine-id", "var/lib/dbus/machine-id"} {
		if id := readWord(root, file); len(id) == 32 {
			sum := sha256.Sum256([]byte(hostSalt + id))
			host.ID = hex.EncodeToString(sum[:16])
			break
		}
	}
	return host, readable(readWord(root, "proc/sys/kernel/random/boot_id"), maxShort)
}

// readWord returns the content of a file of one line, "" if it can't be read.
func readWord(root fs.FS, name string) string {
	data, err := fs.ReadFile(root, name)
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(data))
}

// process identifies a process on one boot of one host: process ids are used
// again, and mean nothing outside of their namespace.
type process struct {
	pid       int
	start     int64  // ticks since boot
	namespace string // of process ids
}

func currentProcess(root fs.FS) (process, error) {
	p := process{pid: os.Getpid(), namespace: pidNamespace(root)}
	var err error
	p.start, err = processStart(root, p.pid)
	return p, err
}

func pidNamespace(root fs.FS) string {
	s, err := fs.ReadLink(root, "proc/self/ns/pid")
	if err != nil {
		return ""
	}
	return readable(s, maxShort)
}

// processStart returns when a process began, in ticks since boot: field 22 of
// /proc/PID/stat, see proc(5). An absent process is fs.ErrNotExist.
func processStart(root fs.FS, pid int) (int64, error) {
	name := path.Join("proc", strconv.Itoa(pid), "stat")
	data, err := fs.ReadFile(root, name)
	if err != nil {
		return 0, err
	}
	// The second field is the program's name in parentheses, and may hold both.
	_, rest, ok := strings.Cut(string(data[max(0, bytes.LastIndexByte(data, ')')):]), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return 0, fmt.Errorf("/%s is not as expected", name)
	}
	start, err := strconv.ParseInt(fields[19], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("/%s: %w", name, err)
	}
	return start, nil
}

// gone tells whether a process of this boot has certainly ended.
func (p process) gone(root fs.FS) bool {
	if p.namespace == "" || p.namespace != pidNamespace(root) || p.pid <= 0 {
		return false
	}
	start, err := processStart(root, p.pid)
	if errors.Is(err, fs.ErrNotExist) {
		// With hidepid, others' processes don't show: believe it only where
		// something that is always there does.
		_, err := processStart(root, 1)
		return err == nil
	}
	return err == nil && start != p.start
}
