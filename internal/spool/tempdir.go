// SPDX-License-Identifier: Apache-2.0

package spool

import "os"

// TempDir is where what does not fit into memory goes: TMPDIR, else not /tmp, which may be
// memory itself.
func TempDir() string {
	const disk = "/var/tmp"
	if info, err := os.Stat(disk); os.Getenv("TMPDIR") == "" && err == nil && info.IsDir() {
		return disk
	}
	return os.TempDir()
}
