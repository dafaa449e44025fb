// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/qcow2"
)

// A raw data file holds the disk as it is, and whoever writes to it past QEMU leaves no
// mark in any bitmap. A person can say that nobody does. Then the bitmaps are examined as
// those of other images, more samples are read, and what speaks against that person counts.

// RawData is what is known of the active image's raw data file.
type RawData struct {
	File    *chain.Source // nil: it has none
	Trusted bool          // a person says that only QEMU writes to it
	// Late says that it was written to when QEMU had closed the image already: with
	// bitmaps in it that is what QEMU writes last.
	Late bool
}

// rawDataOf describes the raw data file of an image.
func rawDataOf(l *qcow2.Layer) RawData {
	files := l.Files()
	if l.Header == nil || l.Header.Autoclear&qcow2.AutoclearDataRaw == 0 || len(files) < 2 {
		return RawData{}
	}
	image, data := files[0].Opened(), files[1].Opened()
	return RawData{
		File: &chain.Source{Path: l.DataFile, Format: string(qcow2.Raw), Device: data.Dev, Inode: data.Inode},
		Late: image.Inode != 0 && data.Inode != 0 && data.MtimeNs > image.MtimeNs,
	}
}

// objection is why no bitmap is believed because of the raw data file, or nil.
func (r *RawData) objection() *Objection {
	switch {
	case r.File == nil:
		return nil
	case !r.Trusted:
		return object(ReasonDataFileRaw, "its raw data file can be written without any mark in a bitmap (--trust-raw-data-file says that nothing does)")
	case r.Late:
		return object(ReasonDataFileRaw, "its raw data file %s was written to after the image was closed: not by QEMU, and so without any mark in a bitmap", r.File.Path)
	}
	return nil
}

// askDataFile compares the raw data file with the one that the state was recorded with.
func (w *witness) askDataFile() *Objection {
	was, is := w.st.Disk.TrustedData, w.Image.RawData.File
	if was == nil || is == nil || w.layer > 0 {
		return nil
	}
	// Devices are renumbered; a device of its own has no other number.
	if was.Inode != is.Inode || was.Inode == 0 && was.Device != is.Device {
		return object(ReasonDataFileRaw, "its raw data file is another one than at checkpoint %s", w.st.Manifest.Checkpoint)
	}
	return nil
}

// samples is how many runs of clean data are compared of each kind.
func (w *witness) samples() int {
	if w.Image.RawData.File != nil {
		return 8 * sampleRuns
	}
	return sampleRuns
}
