// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qemu"
)

// An image that keeps being changed between plan and locks ends the backup with an
// error that names its disk and its path, whichever of the disks it is.
func TestChangedDiskIsNamed(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(l *lab, try int){
		"written to": func(l *lab, try int) {
			l.img("bitmap", "--add", l.path("b"), fmt.Sprintf("other%d", try))
		},
		"replaced": func(l *lab, _ int) {
			copied := l.path("b") + ".new"
			data, err := os.ReadFile(l.path("b"))
			l.must(err)
			l.must(os.WriteFile(copied, data, 0o600))
			l.must(os.Rename(copied, l.path("b")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.create("a", "1M")
			l.create("b", "1M")
			second := l.disk("b")
			second.Disk = "vdb"
			req := l.request("c1", l.disk("a"), second)
			tries := 0
			var notes []string
			_, err := l.run(req, backup.Hooks{
				Note: func(msg string) { notes = append(notes, msg) },
				Step: func(step string) {
					if step == backup.StepAdded {
						tries++
						change(l, tries)
					}
				},
			})
			var disk *chain.DiskError
			var inUse *qemu.InUseError
			if !errors.As(err, &disk) || disk.Disk != "vdb" || !errors.As(err, &inUse) || inUse.Path != l.path("b") {
				t.Errorf("%v", err)
			}
			if err != nil && strings.Contains(err.Error(), filepath.Base(l.path("a"))+" is in use") {
				t.Errorf("the other disk is accused: %v", err)
			}
			if tries < 2 || len(notes) < tries-1 {
				t.Errorf("%d tries, notes %q", tries, notes)
			}
		})
	}
}
