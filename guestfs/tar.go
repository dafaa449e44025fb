// SPDX-License-Identifier: Apache-2.0

package guestfs

import (
	"context"
	"errors"
	"io"
	"strings"
)

// maxTarNames bounds the names for one archive, bytes: the shell gets them as one word.
const maxTarNames = 64 << 10

// Tar writes what lies at paths below a folder, and in them, as a tar archive of POSIX's
// form, with owners as numbers, holes and extended attributes. dir must have no symbolic
// link in it, nor may names but in their last part, which are archived as links.
func (s *Session) Tar(ctx context.Context, dir string, names []string, w io.Writer) error {
	if err := checkPath(dir); err != nil {
		return err
	}
	script := "cd " + inSysroot(dir) + " && tar -cf - --format=posix --sparse --numeric-owner --xattrs --acls --selinux --warning=no-file-ignored --"
	for _, name := range names {
		if name == "" || strings.HasPrefix(name, "/") || strings.ContainsRune(name, 0) {
			return errors.New("tar: a name is no path below the folder")
		}
		script += " " + shellQuote(name)
	}
	if len(script) > maxTarNames {
		return errors.New("tar: the names are too long together")
	}
	return s.pipe(ctx, "tar", script, w)
}
