// SPDX-License-Identifier: Apache-2.0

package recovery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/imgbackup/imgbackup/chain"
	dom "github.com/imgbackup/imgbackup/domain"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/restore"
)

// prepare puts the definitions and the firmware's files into the folder: one definition with the
// disks in their files, and one with the disks as they are served.
func (r *Recovery) prepare(ctx context.Context) error {
	if r.record.Stage != "" && r.record.Stage != Begun {
		return nil
	}
	if err := r.reach(Begun); err != nil {
		return err
	}
	files := r.files()
	if len(files) > 0 {
		var adjusted *dom.Adjusted
		r.adjust(files, &adjusted)
		// What is there is of a run that was killed.
		if _, err := restore.Run(ctx, r.repo, r.m, nil, restore.Options{Files: files, Force: true}); err != nil {
			return err
		}
		if adjusted != nil {
			if err := r.prepareServed(adjusted); err != nil {
				return err
			}
		}
	}
	r.noteFiles()
	return r.reach(Ready)
}

// adjust lets the definition, if there is one, name the files that it will have.
func (r *Recovery) adjust(files []restore.FileTarget, adjusted **dom.Adjusted) {
	moved := dom.Moved{Disks: make(map[string]dom.Image), Name: r.req.Name, NewIdentity: r.req.NewIdentity}
	for _, t := range r.targets {
		disk, _ := r.m.Disk(t.Disk)
		moved.Disks[t.Disk] = dom.Image{Path: t.Path, Format: string(t.Format), Decrypted: disk.Decrypted()}
	}
	for i := range files {
		switch files[i].File.Role {
		case chain.RoleNVRAM:
			moved.NVRAM = files[i].Path
		case chain.RoleLoader:
			moved.Loader = files[i].Path
		}
	}
	for i := range files {
		if files[i].File.Role != chain.RoleDomainXML {
			continue
		}
		files[i].Adjust = func(data []byte) (_ []byte, err error) {
			if *adjusted, err = dom.Adjust(data, moved); err != nil {
				return nil, err
			}
			return (*adjusted).XML, nil
		}
	}
}

// prepareServed makes the definition with the disks as they are served of the other one.
func (r *Recovery) prepareServed(a *dom.Adjusted) error {
	moved := dom.Moved{Disks: make(map[string]dom.Image)}
	for _, t := range r.targets {
		moved.Disks[t.Disk] = dom.Image{Socket: r.socket()}
	}
	served, err := dom.Adjust(a.XML, moved)
	if err != nil {
		return err
	}
	r.record.DomainUUID = a.UUID
	if len(a.Decrypted) > 0 {
		r.req.Note(Decrypted(a.Decrypted))
	}
	if len(a.OtherDisks) > 0 {
		r.req.Note(fmt.Sprintf("the definition names disks that are not in the backup: %s", strings.Join(a.OtherDisks, ", ")))
	}
	if r.req.Name != "" || r.req.NewIdentity {
		if len(a.Shared) > 0 {
			r.req.Note(fmt.Sprintf("%s still names what the original uses: %s", r.definition(), strings.Join(a.Shared, ", ")))
		}
	}
	return r.writeDefinition(r.served(), served.XML)
}

func (r *Recovery) writeDefinition(path string, text []byte) error {
	return sys.WriteWhole(path, ".imgbackup-definition-", 0o600, func(w io.Writer) error {
		_, err := w.Write(text)
		return err
	})
}

// Decrypted says of disks that were encrypted what a person should know.
func Decrypted(disks []string) string {
	return fmt.Sprintf("not encrypted by QEMU any more: %s (of an encrypted image what is in it is archived)", strings.Join(disks, ", "))
}

// noteFiles tells what is not brought back with the disks.
func (r *Recovery) noteFiles() {
	if _, saved := r.m.File(chain.RoleManagedSave); saved {
		r.req.Note("the checkpoint has a saved memory, which is not brought back: the guest boots as after a power cut")
	}
}

// tidy removes what is of no use once the disks are in their files.
func (r *Recovery) tidy() error {
	var errs []error
	all := []string{r.served(), r.changed(), r.socket(), r.socketDir()}
	for _, t := range r.targets {
		all = append(all, t.Path+".map")
	}
	for _, path := range all {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errors.Join(errs...), r.folders().Sync(r.dir))
}
