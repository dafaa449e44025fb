// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"os"
	"path/filepath"
	"strings"
)

// Abs makes a path absolute, and leaves it as it is otherwise: [filepath.Abs] cuts
// "link/.." out, where the kernel follows the link first.
func Abs(path string) (string, error) {
	if filepath.IsAbs(path) {
		return path, nil
	}
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	return wd + "/" + path, nil
}

// Locate returns where the kernel would make or find what path names, which need not be
// there: the folder, which has to be, without links in it, and the name. A link that
// bears the name itself is not followed.
func Locate(path string) (string, error) {
	abs, err := Abs(path)
	if err != nil {
		return "", err
	}
	folder, name := filepath.Split(strings.TrimRight(abs, "/"))
	if name == "" || name == "." || name == ".." {
		return filepath.EvalSymlinks(abs)
	}
	if folder, err = filepath.EvalSymlinks(folder); err != nil {
		return "", err
	}
	return filepath.Join(folder, name), nil
}
