// SPDX-License-Identifier: Apache-2.0

package virtnbd

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// beside is how the program calls what it puts beside a backup's disks.
type beside struct {
	dir   string
	ident string // empty: nobody knows
	plain bool   // copies of the domain's files have their own names
}

// besideOf is that of the backup which a file belongs to.
func besideOf(dir string, s *seenFile) beside {
	b := beside{dir: dir, ident: s.ident}
	switch {
	case s.kind == "copy":
		b.ident, b.plain = "copy", true
	case s.kind == "full" && s.stream != nil:
		b.ident = s.Checkpoint
	}
	if strings.Contains(b.ident, "/") {
		b.ident = ""
	}
	return b
}

// config is the domain's definition; empty: there is none.
func (b *beside) config() string { return b.file("vmconfig." + b.ident + ".xml") }

// Autostart reports whether the program has noted that libvirt starts the domain with its host.
func (b *Backup) Autostart() bool { return b.beside.file("autostart."+b.beside.ident) != "" }

// Beside is the program's copy of a file that the definition names, as the firmware's variables;
// empty: there is none.
func (b *Backup) Beside(original string) string {
	name := filepath.Base(original)
	if !b.beside.plain {
		name += "." + b.beside.ident
	}
	return b.beside.file(name)
}

// file is the path of a regular file, not a link, of that name; empty: there is none.
func (b *beside) file(name string) string {
	if b.ident == "" {
		return ""
	}
	path := filepath.Join(b.dir, name)
	if info, err := os.Lstat(path); err != nil || info.Mode()&fs.ModeType != 0 {
		return ""
	}
	return path
}
