// SPDX-License-Identifier: Apache-2.0

package request

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	dom "github.com/imgbackup/imgbackup/domain"
	"github.com/imgbackup/imgbackup/domain/manager"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/internal/usage"
)

// Stdin is the name of a file that stands for standard input.
const Stdin = "-"

// Files are the files of libvirt's XML that a request may be described by, and where
// libvirt keeps what belongs to them; empty: there is none, or where libvirt has it.
type Files struct {
	Domain     string
	Backup     string // a domainbackup
	Checkpoint string // a domaincheckpoint

	Pools    string // the folder with the definitions of storage pools, NAME.xml
	TPMState string // the state of the domain's TPM, a file or a folder
	Saved    string // the folder with the memory of saved domains, NAME.save

	AllowSaved bool // a saved memory is archived with the domain; else the domain is refused

	Managers manager.Places // whose VMs are domains, too
}

// Where libvirt keeps the definitions of storage pools, the state of TPMs (in a folder
// of the domain's UUID) and the memory of saved domains.
const (
	Pools = "/etc/libvirt/storage"
	TPMs  = "/var/lib/libvirt/swtpm"
	Saved = "/var/lib/libvirt/qemu/save"
)

// XML is what was read of them; each may be nil.
type XML struct {
	from Files

	vm         *vm // of another manager's, which domain is made of; nil: it is libvirt's
	domain     *dom.Domain
	domainXML  []byte
	domainPath string // absolute; empty: standard input
	backup     *dom.Backup
	checkpoint *dom.Checkpoint

	notes []string // that a person should read

	stores          []dom.BackupDisk     // those that the backup XML gives a <target> or <scratch>
	checkpointGiven []dom.CheckpointDisk // the disks that the checkpoint XML lists, by their targets
}

// Read reads the files, at most one of them from stdin.
func (f Files) Read(stdin io.Reader) (*XML, error) {
	in, err := f.read(stdin)
	return in, usage.Wrap(err)
}

// readOf is Read for a domain that was named, which may be a VM of another manager's.
func (f Files) readOf(domain string, stdin io.Reader) (*XML, error) {
	if _, _, ok := manager.Split(domain); !ok {
		return f.Read(stdin)
	}
	if f.Domain+f.Backup+f.Checkpoint+f.TPMState != "" {
		return nil, usage.Errorf("%s is no domain of libvirt's: it goes without --domain-xml, --backup-xml, --checkpoint-xml and --tpm-state", domain)
	}
	v, err := managed(f.Managers, domain)
	if err != nil {
		return nil, err
	}
	return &XML{from: f, vm: v, domain: v.domain, notes: v.notes}, nil
}

func (f Files) read(stdin io.Reader) (*XML, error) {
	f.Pools, f.Saved = cmp.Or(f.Pools, Pools), cmp.Or(f.Saved, Saved)
	in := &XML{from: f}
	fromStdin := 0
	for _, name := range []string{f.Domain, f.Backup, f.Checkpoint} {
		if name == Stdin {
			fromStdin++
		}
	}
	if fromStdin > 1 {
		return in, errors.New("only one file can come from standard input (-)")
	}
	if f.Domain != "" {
		if err := in.readDomain(f.Domain, stdin); err != nil {
			return in, err
		}
		in.domain.ResolveVolumes(func(pool string) ([]byte, error) {
			return readFile(f.Pools+"/"+pool+".xml", stdin)
		})
	}
	if f.Backup != "" {
		data, err := readFile(f.Backup, stdin)
		if err != nil {
			return in, err
		}
		if in.backup, err = dom.ParseBackup(data); err != nil {
			return in, fmt.Errorf("%s: %w", f.Backup, err)
		}
	}
	if f.Checkpoint != "" {
		var err error
		in.checkpoint, err = readCheckpoint(f.Checkpoint, stdin)
		return in, err
	}
	return in, nil
}

func (in *XML) readDomain(name string, stdin io.Reader) (err error) {
	if in.domainXML, err = readFile(name, stdin); err != nil {
		return err
	}
	if in.domain, err = dom.Parse(in.domainXML); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if name != Stdin {
		in.domainPath, err = sys.Abs(name)
	}
	return err
}

func readCheckpoint(name string, stdin io.Reader) (*dom.Checkpoint, error) {
	data, err := readFile(name, stdin)
	if err != nil {
		return nil, err
	}
	c, err := dom.ParseCheckpoint(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

func readFile(name string, stdin io.Reader) ([]byte, error) {
	if name == Stdin {
		return dom.Read(stdin, "standard input")
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	data, err := dom.Read(f, name)
	return data, errors.Join(err, f.Close())
}

// align completes the two by the domain's definition, at the time now. A name
// of the checkpoint that was given beside the XML has to agree with it.
func (in *XML) align(name string, now time.Time) (err error) {
	epoch := now.Unix()
	suffix := strconv.FormatInt(epoch, 10)
	if in.backup != nil {
		for _, bd := range in.backup.Disks {
			if bd.Backup && bd.Store != nil {
				in.stores = append(in.stores, bd)
			}
		}
	}
	if in.checkpoint != nil {
		listed := len(in.checkpoint.Disks) > 0
		switch {
		case in.checkpoint.Name == "":
			in.checkpoint.Name = name
		case name != "" && name != in.checkpoint.Name:
			return usage.Errorf("--checkpoint %s: the checkpoint XML names %s", name, in.checkpoint.Name)
		}
		if in.checkpoint, err = in.checkpoint.Align(in.domain, epoch); err != nil {
			return usage.Wrap(err)
		}
		suffix = in.checkpoint.Name
		if listed {
			in.checkpointGiven = in.checkpoint.Disks
		}
	} else if name != "" {
		suffix = name
	}
	if in.backup != nil {
		if in.backup, err = in.backup.Align(in.domain, suffix); err != nil {
			return usage.Wrap(err)
		}
	}
	return nil
}

// DomainName is the name that was given, or else that of the definition.
func (in *XML) DomainName(given string) (string, error) {
	switch {
	case given == "" && in.domain == nil:
		return "", usage.Errorf("no domain is named: give its name, or its definition with --domain-xml FILE")
	case given == "":
		return in.domain.Name, nil
	case in.domain != nil && in.domain.Name != given:
		return "", usage.Errorf("the domain XML is that of %s, not of %s", in.domain.Name, given)
	}
	return given, nil
}

// Complete returns a domainbackup, and perhaps a domaincheckpoint, with all that
// was left out filled in as libvirt fills it in. What is to be backed up is every
// disk, unless there is a backup XML. checkpoint is the new one's name; empty: it
// is made from now.
func (in *XML) Complete(checkpoint string, now time.Time) (*dom.Backup, *dom.Checkpoint, error) {
	if in.domain == nil {
		return nil, nil, usage.Errorf("--print-xml needs the domain's definition: --domain-xml FILE")
	}
	if in.backup == nil {
		in.backup = &dom.Backup{Mode: dom.Push}
	}
	err := in.align(checkpoint, now)
	return in.backup, in.checkpoint, err
}
