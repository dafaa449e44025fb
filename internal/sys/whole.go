// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// WriteWhole writes a file that appears under its name whole and durable, in the place of
// what stood there. Until then its name begins with prefix; what killed runs have left
// under such names in the folder is removed.
func WriteWhole(path, prefix string, perm uint32, write func(io.Writer) error) (err error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }() // only read
	// What cannot be removed is another's, and harms nothing.
	_ = Sweep(dir, func(name string, folder bool) bool { return !folder && strings.HasPrefix(name, prefix) })
	f, name, err := CreateLocked(dir, func() string { return prefix + rand.Text()[:8] }, perm)
	if err != nil {
		return err
	}
	if err = write(f); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = Control(dir, func(fd int) error { return unix.Renameat(fd, name, fd, filepath.Base(path)) })
	}
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w", path, err), UnlinkAt(dir, name), f.Close())
	}
	return errors.Join(f.Close(), (&FolderSyncer{}).Sync(dir))
}
