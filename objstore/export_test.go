// SPDX-License-Identifier: Apache-2.0

package objstore

import (
	"time"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// OpenS3Stall is OpenS3 with another time for which a connection may stand still.
func OpenS3Stall(c S3Config, stall time.Duration) (*S3, error) { return openS3(c, stall) }

// OpenLocalSyncing and CreateLocalSyncing are OpenLocal and CreateLocal with another
// way to sync folders.
func OpenLocalSyncing(dir string, f *sys.FolderSyncer) (*Local, error) { return openLocal(dir, f) }
func CreateLocalSyncing(dir string, f *sys.FolderSyncer) (*Local, error) {
	return createLocal(dir, f)
}
