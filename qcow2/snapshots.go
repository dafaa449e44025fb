// SPDX-License-Identifier: Apache-2.0

package qcow2

import "time"

// Snapshot is an internal snapshot, as the snapshot table describes it.
type Snapshot struct {
	ID, Name    string        // raw bytes
	Created     time.Time     // UTC
	VMClock     time.Duration // of the guest, when it was taken
	VMStateSize int64         // bytes; 0: disk only
	Size        int64         // virtual size of the disk, bytes
}
