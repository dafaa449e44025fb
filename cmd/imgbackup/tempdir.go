// SPDX-License-Identifier: Apache-2.0

package main

import "os"

// tempDir is where what does not fit into memory goes: not /tmp, which may be
// memory itself.
func tempDir() string {
	const disk = "/var/tmp"
	if info, err := os.Stat(disk); os.Getenv("TMPDIR") == "" && err == nil && info.IsDir() {
		return disk
	}
	return os.TempDir()
}
