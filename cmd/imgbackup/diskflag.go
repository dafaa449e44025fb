// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/foreign"
	"github.com/imgbackup/imgbackup/qcow2"
)

// splitOptions cuts TARGET=PATH,key=value,… at its commas. As in QEMU, a comma
// that belongs to a value is doubled.
func splitOptions(s string) []string {
	var parts []string
	var part strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] != ',':
			part.WriteByte(s[i])
		case i+1 < len(s) && s[i+1] == ',':
			part.WriteByte(',')
			i++
		default:
			parts = append(parts, part.String())
			part.Reset()
		}
	}
	return append(parts, part.String())
}

// diskForm is what --disk takes in all commands that back up.
const diskForm = "TARGET=PATH,format=FORMAT[,keyfile=FILE][,backupmode=full|incremental][,incremental=CHECKPOINT]"

// readable tells whether images of a format can be read.
func readable(f qcow2.Format) bool {
	return f == qcow2.Raw || f == qcow2.Qcow2 || slices.Contains(foreign.Formats(), f)
}

// formatNames lists the formats that can be read.
func formatNames() string {
	names := []string{string(qcow2.Qcow2), string(qcow2.Raw)}
	for _, f := range foreign.Formats() {
		names = append(names, string(f))
	}
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " or " + names[last]
}

// diskFlag is the value of a --disk.
type diskFlag struct {
	backup.DiskRequest
	leaveOut bool // backup=no
}

// diskKey is a key that only some commands know.
type diskKey struct {
	name string
	set  func(val string) error
}

// parseDiskFlag reads the value of a --disk, which may have more keys. Beside a
// definition of the domain it only says what differs from that: path and format
// may be left out.
func parseDiskFlag(value string, defined bool, more ...diskKey) (diskFlag, error) {
	var r diskFlag
	fail := func(format string, args ...any) (diskFlag, error) {
		return r, usageError{fmt.Errorf("--disk %q: %s", value, fmt.Sprintf(format, args...))}
	}
	parts := splitOptions(value)
	target, path, hasPath := strings.Cut(parts[0], "=")
	if target == "" || hasPath && path == "" || !hasPath && !defined {
		return fail("want %s", diskForm)
	}
	r.Disk, r.Path = target, path
	seen := make(map[string]bool)
	for _, part := range parts[1:] {
		key, val, ok := strings.Cut(part, "=")
		if !ok {
			return fail("%q is no key=value (a comma in a path is doubled)", part)
		}
		if seen[key] {
			return fail("%s is given twice", key)
		}
		seen[key] = true
		if i := slices.IndexFunc(more, func(k diskKey) bool { return k.name == key }); i >= 0 {
			if err := more[i].set(val); err != nil {
				return fail("%s: %v", key, err)
			}
			continue
		}
		if problem := r.set(key, val, defined, more); problem != "" {
			return fail("%s", problem)
		}
	}
	if r.leaveOut && len(parts) > 2 {
		return fail("backup=no goes with nothing else")
	}
	if r.Format == "" && !defined {
		return fail("no format: add format=qcow2 or format=raw (it is never guessed, since a guest can write any header into its disk)")
	}
	return r, nil
}

// set takes one key; it returns what is wrong with it.
func (r *diskFlag) set(key, val string, defined bool, more []diskKey) (problem string) {
	switch {
	case key == "format":
		if r.Format = qcow2.Format(val); !readable(r.Format) {
			return fmt.Sprintf("format %q: want %s", val, formatNames())
		}
	case key == "backupmode":
		switch m := backup.Mode(val); m {
		case backup.Full, backup.Incremental:
			r.Mode = m
		default:
			return fmt.Sprintf("backupmode %q: want full or incremental", val)
		}
	case key == "keyfile":
		if val == "" {
			return "keyfile= names no file"
		}
		r.KeyFile = val
	case key == "incremental":
		if val == "" {
			return "incremental= names no checkpoint"
		}
		r.Since = val
	case key == "backup" && defined:
		if val != "yes" && val != "no" {
			return fmt.Sprintf("backup %q: want yes or no", val)
		}
		r.leaveOut = val == "no"
	default:
		names := []string{"format", "keyfile", "backupmode", "incremental"}
		for _, k := range more {
			names = append(names, k.name)
		}
		last := len(names) - 1
		return fmt.Sprintf("unknown key %q: want %s or %s", key, strings.Join(names[:last], ", "), names[last])
	}
	return ""
}
