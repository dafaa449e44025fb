// SPDX-License-Identifier: Apache-2.0

package qcow2

import "os"

// FileID is what tells one state of one file from another: it is compared with
// ==. Times are nanoseconds since 1970.
type FileID struct {
	Dev, Inode       uint64
	Size             int64 // bytes; of a block device, its capacity
	MtimeNs, CtimeNs int64
}

// File is an open file of a chain.
type File struct {
	path string
	f    *os.File
	size int64 // bytes, when it was opened
}
