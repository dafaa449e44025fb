// SPDX-License-Identifier: Apache-2.0

package newhost

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/sys"
)

// The state of a domain's TPM is where libvirt looks for it, in a folder named by the domain's UUID, unless its
// definition says where else it is.

// stateFolder is where libvirt looks for the state of the domain's TPM; empty: it has none there.
func (h *Host) stateFolder(d *Domain, files int) string {
	if files == 0 || d.UUID == "" || d.OwnTPM || h.req.TPMs == "" {
		return ""
	}
	return filepath.Join(h.req.TPMs, d.UUID)
}

// checkState says what is in the way of a TPM's state that is to be restored.
func (h *Host) checkState(d *Domain) {
	if d.State != Waits {
		return // Define compares
	}
	want := make(map[string]archive.Digest)
	for i := range d.Manifest.Files {
		if f := &d.Manifest.Files[i]; f.Role == chain.RoleTPM {
			want[f.Name] = f.SHA256
		}
	}
	at := h.stateFolder(d, len(want))
	if at == "" {
		return
	}
	if _, err := os.Lstat(at); errors.Is(err, fs.ErrNotExist) {
		return
	}
	for name, sum := range want {
		text, err := readState(filepath.Join(at, name))
		if err != nil || archive.Sum(text) != sum {
			d.inTheWay("%s is the state of a TPM already, which is not that of the checkpoint: move it away", at)
			return
		}
	}
}

// readState reads a file of a TPM's state.
func readState(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	return io.ReadAll(io.LimitReader(f, archive.MaxFile))
}

// placeState puts the TPM's state of a domain that was restored where libvirt looks for it. What is there stays.
func (h *Host) placeState(d *Domain) error {
	var names []string
	for _, f := range d.Record.Result.Files {
		if f.Role != chain.RoleTPM || f.Damage != "" {
			continue
		}
		name, ok := strings.CutPrefix(f.Path, filepath.Join(d.Folder, d.Name+".tpm")+"/")
		if !ok || !filepath.IsLocal(name) {
			return fmt.Errorf("the record in %s names %q, which is no file of a TPM's state", d.Folder, f.Path)
		}
		names = append(names, name)
	}
	return h.placeFiles(d, names)
}

// PlaceState is for a domain that is recovered, whose files lie in its folder.
func (h *Host) PlaceState(d *Domain) error {
	var names []string
	for i := range d.Manifest.Files {
		if f := &d.Manifest.Files[i]; f.Role == chain.RoleTPM {
			names = append(names, f.Name)
		}
	}
	if err := h.placeFiles(d, names); err != nil {
		return fmt.Errorf("the state of its TPM: %w", err)
	}
	return nil
}

// placeFiles puts files of a TPM's state that lie in the domain's folder where libvirt looks for them.
func (h *Host) placeFiles(d *Domain, names []string) (err error) {
	files := make(map[string][]byte)
	for _, name := range names {
		if files[name], err = readState(filepath.Join(d.Folder, d.Name+".tpm", name)); err != nil {
			return err
		}
	}
	at := h.stateFolder(d, len(files))
	if at == "" {
		return nil
	}
	if _, err := os.Lstat(at); !errors.Is(err, fs.ErrNotExist) {
		return compareState(at, files)
	}
	// As libvirt makes it: who runs the TPM has to pass.
	if err := os.MkdirAll(h.req.TPMs, 0o711); err != nil {
		return err
	}
	dir, err := os.OpenFile(h.req.TPMs, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }() // only read
	sweep(dir)
	p, err := newPart(dir, &h.folders)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.remove()) }()
	if err := p.f.Chmod(0o711); err != nil {
		return err
	}
	for name, text := range files {
		if err := h.writeState(p.path(), name, text); err != nil {
			return err
		}
	}
	return p.place(filepath.Base(at))
}

// writeState writes a file of a TPM's state, which libvirt gives to who runs the TPM.
func (h *Host) writeState(folder, name string, text []byte) error {
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
		if err := h.folders.SyncPath(filepath.Dir(at)); err != nil {
			return err
		}
	}
	return nil
}

func compareState(at string, files map[string][]byte) error {
	for name, want := range files {
		is, err := readState(filepath.Join(at, name))
		if err != nil || !bytes.Equal(is, want) {
			return fmt.Errorf("%s is the state of a TPM already, which is not the one that was restored: move it away", at)
		}
	}
	return nil
}
