// SPDX-License-Identifier: Apache-2.0

package request

import (
	"os"

	"github.com/imgbackup/imgbackup/domain"
)

// ImagePaths are where the images of disks lie, as values of --disk name them, or the files of definitions; for
// who only wants to look at their folders. What can't be read, or has no path, is left out.
func ImagePaths(disks, definitions []string) (all []string) {
	for _, v := range disks {
		if d, err := parseDisk(v, toBackUp, true); err == nil && d.Path != "" && !d.leaveOut {
			all = append(all, d.Path)
		}
	}
	for _, path := range definitions {
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		d, err := domain.Parse(data)
		if err != nil {
			continue
		}
		for i := range d.Disks {
			if disk := &d.Disks[i]; disk.Path != "" && !disk.ReadOnly && disk.Device == "disk" {
				all = append(all, disk.Path)
			}
		}
	}
	return all
}
