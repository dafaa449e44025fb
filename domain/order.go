// SPDX-License-Identifier: Apache-2.0

package domain

import (
	"slices"
	"strings"
)

// targetPrefixes are the beginnings of disks' names.
var targetPrefixes = [...]string{"fd", "hd", "sd", "vd", "xvd", "ubd"}

// targetIndex is the place of a disk on its bus: a is 0, z 25, aa 26. What is no
// such name, or too long for one, comes last.
func targetIndex(target string) int64 {
	const last = 1 << 31
	for _, p := range targetPrefixes {
		rest, ok := strings.CutPrefix(target, p)
		if !ok {
			continue
		}
		rest = strings.TrimRight(rest, "0123456789")
		index := int64(-1)
		for _, c := range []byte(rest) {
			if c < 'a' || c > 'z' || index >= last {
				return last
			}
			index = (index+1)*26 + int64(c-'a')
		}
		if index >= 0 {
			return min(index, last)
		}
	}
	return last
}

// insertDisk puts a disk where libvirt puts it: disks of one bus in the order of
// their names, buses as they come, where those whose definition names no bus are
// on one of their own.
func insertDisk(disks []Disk, d Disk) []Disk {
	at := -1
	for i := len(disks) - 1; i >= 0; i-- {
		switch {
		case disks[i].bus != d.bus:
		case targetIndex(disks[i].Target) > targetIndex(d.Target):
			at = i
		case at < 0:
			at = i + 1
		}
	}
	if at < 0 {
		at = len(disks)
	}
	return slices.Insert(disks, at, d)
}
