// SPDX-License-Identifier: Apache-2.0

package recovery

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	dom "github.com/imgbackup/imgbackup/domain"
	"github.com/imgbackup/imgbackup/internal/sys"
)

// TPM is where libvirt looks for the state of a domain's TPM.
type TPM struct {
	Root string // the folder of all of them, in which each has one that is named by its domain's UUID
	UUID string
}

// TPMOf is that of a domain whose checkpoint has a state; the zero TPM: libvirt looks for it elsewhere, or nobody
// knows where. root may be empty.
func TPMOf(d *dom.Domain, m *chain.Manifest, root string) TPM {
	if d == nil || d.UUID == "" || d.OwnTPM() || root == "" || len(stateNames(m)) == 0 {
		return TPM{}
	}
	return TPM{root, d.UUID}
}

func stateNames(m *chain.Manifest) (names []string) {
	for i := range m.Files {
		if f := &m.Files[i]; f.Role == chain.RoleTPM {
			names = append(names, f.Name)
		}
	}
	return names
}

func (t TPM) at() string { return filepath.Join(t.Root, t.UUID) }

// Check returns an error if another state is there than a checkpoint's.
func (t TPM) Check(m *chain.Manifest) error {
	if t.UUID == "" {
		return nil
	}
	if _, err := os.Lstat(t.at()); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for i := range m.Files {
		f := &m.Files[i]
		if f.Role != chain.RoleTPM {
			continue
		}
		text, err := sys.ReadBounded(filepath.Join(t.at(), f.Name), archive.MaxFile)
		if err != nil || archive.Sum(text) != f.SHA256 {
			return fmt.Errorf("%s is the state of a TPM already, which is not that of the checkpoint: move it away", t.at())
		}
	}
	return nil
}

// Place puts files of a state, which lie in a folder, where libvirt looks for them. Another state that is
// there stays, and is an error.
func (t TPM) Place(from string, names []string, folders *sys.FolderSyncer) (err error) {
	if t.UUID == "" || len(names) == 0 {
		return nil
	}
	files := make(map[string][]byte)
	for _, name := range names {
		if files[name], err = sys.ReadBounded(filepath.Join(from, name), archive.MaxFile); err != nil {
			return err
		}
	}
	if _, err := os.Lstat(t.at()); !errors.Is(err, fs.ErrNotExist) {
		return t.compare(files)
	}
	// As libvirt makes it: who runs the TPM has to pass.
	if err := os.MkdirAll(t.Root, 0o711); err != nil {
		return err
	}
	if err := folders.SyncPath(filepath.Dir(t.Root)); err != nil {
		return err
	}
	dir, err := os.OpenFile(t.Root, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }() // only read
	const prefix = ".imgbackup-restoring-"
	sys.SweepWholeFolders(dir, prefix)
	w, err := sys.NewWholeFolder(dir, prefix, folders)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Remove()) }()
	if err := w.File().Chmod(0o711); err != nil {
		return err
	}
	for name, text := range files {
		if err := writeState(w.Path(), name, text, folders); err != nil {
			return err
		}
	}
	return w.Place(t.UUID)
}

// writeState writes a file of a TPM's state, which libvirt gives to who runs the TPM.
func writeState(folder, name string, text []byte, folders *sys.FolderSyncer) error {
	path := filepath.Join(folder, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := sys.WriteWhole(path, ".imgbackup-", 0o600, func(w io.Writer) error {
		_, err := w.Write(text)
		return err
	}); err != nil {
		return err
	}
	for at := filepath.Dir(path); len(at) > len(folder); at = filepath.Dir(at) {
		if err := folders.SyncPath(filepath.Dir(at)); err != nil {
			return err
		}
	}
	return nil
}

func (t TPM) compare(files map[string][]byte) error {
	for name, want := range files {
		is, err := sys.ReadBounded(filepath.Join(t.at(), name), archive.MaxFile)
		if err != nil || !bytes.Equal(is, want) {
			return fmt.Errorf("%s is the state of a TPM already, which is not the one that was restored: move it away", t.at())
		}
	}
	return nil
}

// placeTPM puts the state where libvirt looks for it, if it is known where that is, and may be written.
func (r *Recovery) placeTPM(d *dom.Domain) error {
	if len(stateNames(r.m)) == 0 {
		return nil
	}
	from := filepath.Join(r.req.Dir, r.record.Name+".tpm")
	t := TPMOf(d, r.m, r.req.TPMs)
	if t.UUID == "" {
		where := "where libvirt looks for it"
		if d.OwnTPM() {
			where = "where the definition says"
		}
		r.req.Note(fmt.Sprintf("the state of the TPM is in %s, and belongs %s before the domain is started (--no-start)", from, where))
		return nil
	}
	if err := t.Place(from, stateNames(r.m), r.folders()); err != nil {
		return fmt.Errorf("the state of its TPM: %w", err)
	}
	return nil
}
