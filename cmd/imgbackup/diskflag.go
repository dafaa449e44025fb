// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/imgbackup/imgbackup/backup"
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

// parseDisk reads the value of backup's --disk.
func parseDisk(value string) (backup.DiskRequest, error) {
	var r backup.DiskRequest
	fail := func(format string, args ...any) (backup.DiskRequest, error) {
		return r, usageError{fmt.Errorf("--disk %q: %s", value, fmt.Sprintf(format, args...))}
	}
	parts := splitOptions(value)
	target, path, ok := strings.Cut(parts[0], "=")
	if !ok || target == "" || path == "" {
		return fail("want TARGET=PATH,format=qcow2|raw[,backupmode=full|incremental][,incremental=CHECKPOINT]")
	}
	r.Target, r.Path = target, path
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
		switch key {
		case "format":
			switch f := qcow2.Format(val); f {
			case qcow2.Raw, qcow2.Qcow2:
				r.Format = f
			default:
				return fail("format %q: want qcow2 or raw", val)
			}
		case "backupmode":
			switch m := backup.Mode(val); m {
			case backup.Full, backup.Incremental:
				r.Mode = m
			default:
				return fail("backupmode %q: want full or incremental", val)
			}
		case "incremental":
			if val == "" {
				return fail("incremental= names no checkpoint")
			}
			r.Since = val
		default:
			return fail("unknown key %q: want format, backupmode or incremental", key)
		}
	}
	if r.Format == "" {
		return fail("no format: add format=qcow2 or format=raw (it is never guessed, since a guest can write any header into its disk)")
	}
	return r, nil
}
