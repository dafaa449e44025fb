// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"github.com/imgbackup/imgbackup/backup/trust"
	"github.com/imgbackup/imgbackup/chain"
)

// look describes a disk's open image. What was seen once of a raw data file counts until
// the end: our own bitmap, when it is added, covers it.
func (s *session) look(d *disk) *trust.Image {
	if d.seen != nil {
		return d.seen
	}
	image := trust.Look(d.image)
	d.lateData = d.lateData || image.RawData.Late
	image.RawData.Late = d.lateData
	image.RawData.Trusted = s.trustsRawData(d)
	return image
}

// trustsRawData reports whether a person says that only QEMU writes to a disk's raw data
// file.
func (s *session) trustsRawData(d *disk) bool {
	if d.req.TrustRawData != nil {
		return *d.req.TrustRawData
	}
	return s.req.TrustRawData
}

// trustedData is the raw data file as it is recorded, if it is trusted.
func (s *session) trustedData(d *disk) *chain.Source {
	if !s.trustsRawData(d) {
		return nil
	}
	return s.look(d).RawData.File
}
