// SPDX-License-Identifier: Apache-2.0

package request

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/internal/usage"
)

// parseFiles reads the values of --with-file.
func parseFiles(values []string) ([]backup.FileRequest, error) {
	var all []backup.FileRequest
	for _, v := range values {
		name, path, ok := strings.Cut(v, "=")
		if !ok || path == "" {
			return nil, usage.Errorf("--with-file %q: want NAME=PATH", v)
		}
		if err := chain.CheckName(name); err != nil {
			return nil, usage.Errorf("--with-file %q: %w", v, err)
		}
		if slices.ContainsFunc(all, func(f backup.FileRequest) bool { return f.Name == name }) {
			return nil, usage.Errorf("--with-file: two files are called %s", name)
		}
		abs, err := sys.Abs(path)
		if err != nil {
			return nil, err
		}
		all = append(all, backup.FileRequest{Role: chain.RoleFile, Name: name, Path: abs})
	}
	return all, nil
}

// files takes the files that a person had named at a checkpoint, if they are still there.
func (l *Last) files(m *chain.Manifest) error {
	var names, gone []string
	for i := range m.Files {
		f := &m.Files[i]
		if f.Role != chain.RoleFile {
			continue
		}
		switch _, err := os.Lstat(f.Path); {
		case errors.Is(err, fs.ErrNotExist):
			gone = append(gone, f.Name+" ("+f.Path+")")
		case err != nil:
			return err
		default:
			l.Files = append(l.Files, f.Name+"="+f.Path)
			names = append(names, f.Name)
		}
	}
	if len(names) > 0 {
		l.note("with its files: %s", strings.Join(names, ", "))
	}
	if len(gone) > 0 {
		l.note("files that are no longer where they were are left out: %s", strings.Join(gone, ", "))
	}
	return nil
}

// takeFiles adds the files of the last checkpoint to those that are named, which come first.
func takeFiles(named, last []string) []string {
	all := slices.Clone(named)
	for _, f := range last {
		name, _, _ := strings.Cut(f, "=")
		if !slices.ContainsFunc(named, func(n string) bool { return strings.HasPrefix(n, name+"=") }) {
			all = append(all, f)
		}
	}
	return all
}
