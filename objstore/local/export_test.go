// SPDX-License-Identifier: Apache-2.0

package local

import "github.com/imgbackup/imgbackup/internal/sys"

// OpenSyncing and CreateSyncing are Open and Create with another way to sync folders.
func OpenSyncing(dir string, f *sys.FolderSyncer) (*Store, error)   { return open(dir, f) }
func CreateSyncing(dir string, f *sys.FolderSyncer) (*Store, error) { return create(dir, f) }
