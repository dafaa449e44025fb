// SPDX-License-Identifier: Apache-2.0

package request

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/chain"
	dom "github.com/imgbackup/imgbackup/domain"
	"github.com/imgbackup/imgbackup/domain/lima"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
)

// limaVMs are Lima's instances: folders in its home, with all that belongs to them but disks
// that have names of their own.
type limaVMs struct{ home string }

func (l *limaVMs) find(name string) (*vm, error) {
	if err := lima.CheckName(name); err != nil {
		return nil, usage.Wrap(err)
	}
	home, err := filepath.EvalSymlinks(l.home)
	if err != nil {
		return nil, fmt.Errorf("the folder of Lima: %w (LIMA_HOME names another)", err)
	}
	i := &limaInstance{home: home, dir: filepath.Join(home, name), vm: &vm{domain: &dom.Domain{}}}
	return i.vm, i.read(name)
}

// limaInstance is one that is being read.
type limaInstance struct {
	home, dir string // without links in them, but for the last part of dir
	vm        *vm
}

func (i *limaInstance) read(name string) error {
	info, err := os.Lstat(i.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return usage.Errorf("there is no instance %s in %s (LIMA_HOME names another folder)", name, i.home)
	case err != nil:
		return err
	case !info.IsDir():
		return usage.Errorf("%s is no folder", i.dir)
	}
	path := filepath.Join(i.dir, lima.YAML)
	text, err := readBounded(path, lima.MaxYAML)
	if err != nil {
		return err
	}
	definition, err := i.definition(path, text)
	if err != nil {
		return err
	}
	if err := i.off(name); err != nil {
		return err
	}
	i.vm.files = append(i.vm.files, backup.FileRequest{Role: chain.RoleLima, Path: path, Data: text})
	if err := i.disks(definition); err != nil {
		return err
	}
	return i.others()
}

// definition is what an instance's own says with those that hold for all.
func (i *limaInstance) definition(path string, text []byte) (*lima.Instance, error) {
	own, err := lima.Parse(text)
	if err != nil {
		return nil, usage.Errorf("%s: %w", path, err)
	}
	var shared [2]*lima.Instance
	for n, name := range []string{lima.Override, lima.Default} {
		path := filepath.Join(i.home, lima.Config, name)
		text, err := readBounded(path, lima.MaxYAML)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if shared[n], err = lima.Parse(text); err != nil {
			return nil, usage.Errorf("%s: %w", path, err)
		}
		if len(shared[n].Disks) > 0 {
			i.vm.note("%s names disks of every instance: %s", path, strings.Join(shared[n].Disks, ", "))
		}
	}
	all, err := own.With(shared[0], shared[1])
	if err != nil {
		return nil, usage.Errorf("%s: %w", path, err)
	}
	if all.VMType == "wsl2" {
		return nil, usage.Errorf("%s: instances of type wsl2 have no disk of their own", path)
	}
	return all, nil
}

// off returns an error if the instance runs.
func (i *limaInstance) off(name string) error {
	for _, file := range lima.PIDFiles() {
		path := filepath.Join(i.dir, file)
		pid, err := process(path, func(words []string) bool {
			return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(w, "/"+name+"/") || w == name })
		})
		if err != nil {
			return err
		}
		if pid > 0 {
			return &qemu.InUseError{Path: path, Why: fmt.Sprintf("the instance runs (process %d): 'limactl stop %s' first", pid, name)}
		}
	}
	return nil
}

// disks are the instance's own disk, a medium that it was installed from, and those that have
// names.
func (i *limaInstance) disks(definition *lima.Instance) error {
	own := filepath.Join(i.dir, lima.Disk)
	if _, err := os.Lstat(own); errors.Is(err, fs.ErrNotExist) {
		own = filepath.Join(i.dir, lima.DiskBefore)
	}
	if err := i.disk("disk", own); err != nil {
		return err
	}
	if _, err := os.Lstat(filepath.Join(i.dir, lima.ISO)); err == nil {
		i.vm.domain.Disks = append(i.vm.domain.Disks, dom.Disk{Target: "iso", Device: "cdrom", Type: dom.TypeFile,
			Path: filepath.Join(i.dir, lima.ISO), Format: string(qcow2.Raw), ReadOnly: true})
	}
	for _, name := range definition.Disks {
		if err := i.disk("disk-"+name, filepath.Join(i.home, lima.Disks, name, lima.DataDisk)); err != nil {
			return err
		}
	}
	return nil
}

// disk adds a disk. Lima records no formats: it lets QEMU find them, which then lets no guest
// write another's header into a disk that it has taken for raw. So what the header says is what
// Lima starts it as.
func (i *limaInstance) disk(name, path string) error {
	real, err := i.inside(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return usage.Errorf("disk %s: there is no %s: was the instance ever started?", name, path)
	case err != nil:
		return fmt.Errorf("disk %s: %w", name, err)
	}
	format, err := formatByHeader(real)
	if err != nil {
		return fmt.Errorf("disk %s: %w", name, err)
	}
	i.vm.domain.Disks = append(i.vm.domain.Disks, dom.Disk{Target: name, Device: "disk", Type: dom.TypeFile, Path: real, Format: format})
	return nil
}

// inside follows links as long as they lead to no other place than Lima's: who may write
// there is not always who backs up.
func (i *limaInstance) inside(path string) (string, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	within := func(dir string) bool { return strings.HasPrefix(real, dir+"/") }
	if !within(i.dir) && !within(filepath.Join(i.home, lima.Disks)) {
		return "", usage.Errorf("%s is a link to %s, which is in no folder of the instance's: --disk NAME=PATH,format=FORMAT says that it is meant", path, real)
	}
	return real, nil
}

// formatByHeader is the format that an image's first bytes say it is of.
func formatByHeader(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", usage.Errorf("%s is no regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	like, err := qcow2.Resemble(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return "", err
	}
	if like.Format == "" {
		return string(qcow2.Raw), nil
	}
	return string(like.Format), nil
}

// others are small files that belong to the instance, and the state of its TPM.
func (i *limaInstance) others() error {
	for _, name := range lima.SmallFiles() {
		path := filepath.Join(i.dir, name)
		info, err := os.Lstat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return err
		case !info.Mode().IsRegular():
			return usage.Errorf("%s is no regular file", path)
		case info.Size() > archive.MaxFile:
			i.vm.note("%s is not archived: it has more than %d MiB", path, archive.MaxFile>>20)
		default:
			i.vm.files = append(i.vm.files, backup.FileRequest{Role: chain.RoleFile, Name: name, Path: path, NoLink: true})
		}
	}
	tpm := filepath.Join(i.dir, lima.TPM)
	info, err := os.Lstat(tpm)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.IsDir():
		return usage.Errorf("%s is no folder", tpm)
	}
	i.vm.files = append(i.vm.files, backup.FileRequest{Role: chain.RoleTPM, Path: tpm})
	return nil
}
