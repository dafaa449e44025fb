// SPDX-License-Identifier: Apache-2.0

package chain

import "github.com/imgbackup/imgbackup/archive"

// Folder is the part of keys under which lies what is of one writer alone: its leases and its
// indexes. In an encrypted repository it is the name of whose key signs, so that the rights
// in a store can be bound to it before anybody knows the host; else it is the host's.
func (r *Repository) Folder() (string, error) {
	sign, err := r.signer()
	if err != nil {
		return "", err
	}
	if sign != nil {
		return sign.States("").By, nil
	}
	self, err := r.Self()
	if err != nil {
		return "", err
	}
	return self.Host.folder(), nil
}

// Indexing is that of who has opened the repository.
func (r *Repository) Indexing() (archive.Indexing, error) {
	folder, err := r.Folder()
	return archive.Indexing{Folder: folder, Seals: r.IndexSeals()}, err
}
