// SPDX-License-Identifier: Apache-2.0

package memory

import (
	"bufio"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
)

// Find asks what limits the memory of this process: its control groups and those above
// them, of either version, the machine's size, of which three quarters count, and
// GOMEMLIMIT. What can't be read limits nothing. given reports whether GOMEMLIMIT says
// what Go's heap may take.
func Find() (b Budget, given bool) {
	l := limits{bytes: Usual}
	l.groups("/")
	l.machine("/")
	if given = os.Getenv("GOMEMLIMIT") != ""; given {
		l.add(ofHeap(debug.SetMemoryLimit(-1)), "GOMEMLIMIT")
	}
	return Of(l.bytes, l.why), given
}

// Room is how much memory there is for several runs together, bytes, by the same limits.
func Room() int64 {
	l := limits{bytes: math.MaxInt64}
	l.groups("/")
	l.machine("/")
	return l.bytes
}

// limits finds the lowest.
type limits struct {
	bytes int64
	why   string
}

func (l *limits) add(bytes int64, why string) {
	if bytes < l.bytes {
		l.bytes, l.why = bytes, why
	}
}

// file adds the number that a file holds, if it does.
func (l *limits) file(path string) {
	text, err := os.ReadFile(path)
	if err != nil {
		return
	}
	// "max" is none, and so is what no number of bytes can be.
	if n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && n >= 0 {
		l.add(n, path)
	}
}

// machine adds what the machine has. The kernel and others need some of it.
func (l *limits) machine(root string) {
	text, err := os.ReadFile(filepath.Join(root, "proc/meminfo"))
	if err != nil {
		return
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == "MemTotal:" && f[2] == "kB" {
			if n, err := strconv.ParseInt(f[1], 10, 64); err == nil && n >= 0 && n < 1<<50 {
				l.add(n<<10/4*3, "three quarters of the machine's memory")
			}
		}
	}
}

// groups adds the limits of this process' control groups.
func (l *limits) groups(root string) {
	mounts := groupMounts(filepath.Join(root, "proc/self/mountinfo"))
	text, err := os.ReadFile(filepath.Join(root, "proc/self/cgroup"))
	if err != nil {
		return
	}
	for line := range strings.Lines(string(text)) {
		// number:controllers:path; version 2 has number 0 and no controllers.
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 {
			continue
		}
		for _, m := range mounts {
			switch {
			case f[0] == "0" && f[1] == "" && m.version2:
				l.path(root, m, f[2], "memory.max", "memory.high")
			case hasWord(f[1], "memory") && !m.version2:
				l.path(root, m, f[2], "memory.limit_in_bytes")
			}
		}
	}
}

// path adds what the files say in a group and in those above it.
func (l *limits) path(root string, m groupMount, group string, files ...string) {
	// In a container the mount may begin at its own group, whether or not the path does.
	at, below := strings.CutPrefix(group, strings.TrimSuffix(m.begin, "/"))
	if !below || at != "" && at[0] != '/' {
		at = "/"
	}
	top := filepath.Join(root, m.point)
	for dir := filepath.Join(top, filepath.Clean("/"+at)); ; dir = filepath.Dir(dir) {
		for _, name := range files {
			l.file(filepath.Join(dir, name))
		}
		if dir == top || len(dir) < len(top) {
			return
		}
	}
}

// groupMount is where control groups are seen.
type groupMount struct {
	begin    string // the group that is at the mount point
	point    string
	version2 bool
}

// groupMounts are those of version 2, and those of version 1 that are about memory.
func groupMounts(mountinfo string) (all []groupMount) {
	f, err := os.Open(mountinfo)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }() // only read
	for in := bufio.NewScanner(f); in.Scan(); {
		// id parent device begin point options… - type source options
		mount, kind, ok := strings.Cut(in.Text(), " - ")
		m, k := strings.Fields(mount), strings.Fields(kind)
		if !ok || len(m) < 6 || len(k) < 3 {
			continue
		}
		if two := k[0] == "cgroup2"; two || k[0] == "cgroup" && hasWord(k[2], "memory") {
			all = append(all, groupMount{begin: unescape(m[3]), point: unescape(m[4]), version2: two})
		}
	}
	return all
}

func hasWord(list, word string) bool {
	for w := range strings.SplitSeq(list, ",") {
		if w == word {
			return true
		}
	}
	return false
}

// unescape undoes what mountinfo does to blanks: \040.
func unescape(s string) string {
	var out []byte
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out = append(out, byte(n))
				i += 3
				continue
			}
		}
		out = append(out, s[i])
	}
	return string(out)
}
