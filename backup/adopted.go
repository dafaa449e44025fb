// SPDX-License-Identifier: Apache-2.0

package backup

import "github.com/imgbackup/imgbackup/backup/trust"

// noteAdopted tells, once, what vouches for a bitmap that another program made.
func (s *session) noteAdopted(d *disk, v trust.Verdict) {
	if v.Base.Disk.Adopted == nil || d.vouched == v.Reason {
		return
	}
	d.vouched = v.Reason
	s.hooks.note("disk %s: %s", d.req.Disk, v.Reason)
}
