// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"fmt"
	"time"
)

// Imported says that a checkpoint was made of what somebody else had left, and not of a VM's
// images: its time is then when these say that they were made.
type Imported struct {
	At    time.Time      `json:"at"`        // UTC: when it was imported
	From  string         `json:"from"`      // what had made it, for people
	Time  string         `json:"time_from"` // how the checkpoint's time is known: a Time… below
	Files []ImportedFile `json:"files"`     // all that its disks were read from
}

// ImportedFile is one file that a disk was read from, as it was when reading began and still at
// the end.
type ImportedFile struct {
	Disk  string `json:"target"`
	Path  string `json:"path"`
	Size  int64  `json:"size"`               // bytes; of a block device its capacity
	Mtime int64  `json:"mtime_ns,omitempty"` // ns since 1970; a block device has none
}

// How the time of an imported checkpoint is known.
const (
	TimeGiven    = "given"    // a person said it
	TimeOfFile   = "file"     // it is the newest time of modification of its files
	TimeRecorded = "recorded" // whatever made it had written it down
)

// maxImported bounds the files of an imported checkpoint.
const maxImported = 1 << 16

func (im *Imported) validate(c *checker, m *Manifest) {
	c.that(m.Kind == KindArchive, "a checkpoint without data was imported")
	c.time("imported.at", im.At)
	c.text("imported.from", im.From, maxShort)
	c.oneOf("imported.time_from", im.Time, TimeGiven, TimeOfFile, TimeRecorded)
	c.that(len(im.Files) >= 1 && len(im.Files) <= maxImported, "imported from %d files", len(im.Files))
	of := make(map[string]bool)
	for i := range im.Files {
		f := &im.Files[i]
		_, known := m.Disk(f.Disk)
		c.that(known, "a file of disk %.80q was imported, which is not there", f.Disk)
		c.path("path of an imported file", f.Path)
		c.atLeast("size of an imported file", f.Size, 0)
		of[f.Disk] = true
	}
	for i := range m.Disks {
		d := &m.Disks[i]
		c.in("disk "+d.Name, func(c *checker) {
			c.that(of[d.Name], "it was imported from no file")
			c.that(d.Bitmap == "", "it was imported, and has a bitmap")
		})
	}
}

// String says for people what the checkpoint was made of, and when.
func (im *Imported) String() string {
	how := map[string]string{TimeGiven: "as a person said", TimeOfFile: "by the files' times", TimeRecorded: "as that had recorded"}[im.Time]
	return fmt.Sprintf("on %s, from %s; created %s", im.At.UTC().Format(time.RFC3339), im.From, how)
}
