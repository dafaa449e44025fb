// SPDX-License-Identifier: Apache-2.0

package request

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/imgbackup/imgbackup/internal/usage"
)

// Definitions lists the definitions in a folder by name: regular files that end
// in .xml, and symbolic links to such. What lies in its own folders (libvirt's
// networks, autostart) is not looked at.
func Definitions(folder string) ([]string, error) {
	files, err := definitionsIn(folder)
	if err != nil {
		return nil, usage.Errorf("--all-domains: %w", err)
	}
	return files, nil
}

func definitionsIn(folder string) ([]string, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".xml") {
			continue
		}
		// One that cannot be looked at is not passed over: to read it will fail.
		kind, at := e.Type(), filepath.Join(folder, e.Name())
		if fi, err := os.Stat(at); err == nil {
			kind = fi.Mode().Type()
		}
		if kind.IsRegular() || kind == fs.ModeSymlink {
			files = append(files, e.Name())
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("there is no definition (*.xml) in %s", folder)
	}
	return files, nil
}
