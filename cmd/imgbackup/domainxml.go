// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/pflag"

	"github.com/imgbackup/imgbackup/backup"
	dom "github.com/imgbackup/imgbackup/domain"
)

// xmlFlags are the files of libvirt's XML that a backup may be described by;
// "-" is standard input.
type xmlFlags struct {
	domain     string
	backup     string
	checkpoint string
	folder     string // of definitions: all of them are taken
	print      bool
}

func (f *xmlFlags) add(flags *pflag.FlagSet) {
	f.addFiles(flags)
	flags.StringVar(&f.folder, "all-domains", "", "back up every domain whose definition (*.xml) is in this `DIR`")
	flags.BoolVar(&f.print, "print-xml", false, "print the completed XML and do nothing else")
}

// addFiles adds the flags that name files of one domain.
func (f *xmlFlags) addFiles(flags *pflag.FlagSet) {
	flags.StringVar(&f.domain, "domain-xml", "", "the domain's definition is in this `FILE` (-: standard input)")
	flags.StringVar(&f.backup, "backup-xml", "", "what to do is in this `FILE`, as a domainbackup (-: standard input)")
	flags.StringVar(&f.checkpoint, "checkpoint-xml", "", "the new checkpoint is described in this `FILE`, as a domaincheckpoint (-: standard input)")
}

// conflicts refuses flags that say the same thing in two ways.
func (f *xmlFlags) conflicts(flags *pflag.FlagSet, args []string) error {
	exclude := func(flag string, others ...string) error {
		for _, other := range others {
			if flags.Changed(flag) && flags.Changed(other) {
				return usageError{fmt.Errorf("--%s and --%s exclude each other", flag, other)}
			}
		}
		return nil
	}
	if f.folder != "" && len(args) > 0 {
		return usageError{errors.New("--all-domains takes the names from the definitions: no DOMAIN can be given")}
	}
	return errors.Join(
		exclude("backup-xml", "disk", "mode", "incremental", "target", "socket", "listen"),
		exclude("all-domains", "disk", "incremental", "domain-xml", "backup-xml", "checkpoint-xml", "print-xml", "target"),
	)
}

// xmlInput is what was read of them; each may be nil.
type xmlInput struct {
	domain     *dom.Domain
	domainXML  []byte
	domainPath string // absolute; empty: standard input
	backup     *dom.Backup
	checkpoint *dom.Checkpoint
	pull       bool // it is for a pull backup

	targets         []dom.BackupDisk     // those that the backup XML gives a <target> or <scratch>
	checkpointGiven []dom.CheckpointDisk // the disks that the checkpoint XML lists, by their targets
}

// readXML reads the files that were named. Every error is one of usage: what
// was handed in is not what libvirt would take.
func (a *app) readXML(f xmlFlags) (in xmlInput, err error) {
	defer func() {
		if err != nil {
			err = usageError{err}
		}
	}()
	stdin := 0
	for _, name := range []string{f.domain, f.backup, f.checkpoint} {
		if name == "-" {
			stdin++
		}
	}
	if stdin > 1 {
		return in, errors.New("only one file can come from standard input (-)")
	}
	if f.domain != "" {
		if in.domainXML, err = a.readXMLFile(f.domain); err != nil {
			return in, err
		}
		if in.domain, err = dom.Parse(in.domainXML); err != nil {
			return in, fmt.Errorf("%s: %w", f.domain, err)
		}
		if f.domain != "-" {
			if in.domainPath, err = filepath.Abs(f.domain); err != nil {
				return in, err
			}
		}
	}
	if f.backup != "" {
		data, err := a.readXMLFile(f.backup)
		if err != nil {
			return in, err
		}
		if in.backup, err = dom.ParseBackup(data); err != nil {
			return in, fmt.Errorf("%s: %w", f.backup, err)
		}
	}
	if f.checkpoint != "" {
		data, err := a.readXMLFile(f.checkpoint)
		if err != nil {
			return in, err
		}
		if in.checkpoint, err = dom.ParseCheckpoint(data); err != nil {
			return in, fmt.Errorf("%s: %w", f.checkpoint, err)
		}
	}
	return in, nil
}

func (a *app) readXMLFile(name string) ([]byte, error) {
	if name == "-" {
		return dom.Read(a.in, "standard input")
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	data, err := dom.Read(io.Reader(f), name)
	return data, errors.Join(err, f.Close())
}

// align completes the two by the domain's definition, at the time now. A name
// of the checkpoint that was given beside the XML has to agree with it.
func (in *xmlInput) align(name string, now time.Time) (err error) {
	epoch := now.Unix()
	suffix := strconv.FormatInt(epoch, 10)
	if in.backup != nil {
		for _, bd := range in.backup.Disks {
			if bd.Backup && bd.Store != nil {
				in.targets = append(in.targets, bd)
			}
		}
	}
	if in.checkpoint != nil {
		listed := len(in.checkpoint.Disks) > 0
		switch {
		case in.checkpoint.Name == "":
			in.checkpoint.Name = name
		case name != "" && name != in.checkpoint.Name:
			return usageError{fmt.Errorf("--checkpoint %s: the checkpoint XML names %s", name, in.checkpoint.Name)}
		}
		if in.checkpoint, err = in.checkpoint.Align(in.domain, epoch); err != nil {
			return usageError{err}
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
			return usageError{err}
		}
	}
	return nil
}

// domainName is the name that was given or that the definition has.
func domainName(args []string, in xmlInput) (string, error) {
	switch {
	case len(args) == 0 && in.domain == nil:
		return "", usageError{errors.New("which domain? give its name, or its definition with --domain-xml FILE")}
	case len(args) == 0:
		return in.domain.Name, nil
	case in.domain != nil && in.domain.Name != args[0]:
		return "", usageError{fmt.Errorf("the domain XML is that of %s, not of %s", in.domain.Name, args[0])}
	}
	return args[0], nil
}

// printXML prints the completed XML. What is to be backed up is every disk,
// unless there is a backup XML.
func (a *app) printXML(in xmlInput, checkpoint string) error {
	if in.domain == nil {
		return usageError{errors.New("--print-xml needs the domain's definition: --domain-xml FILE")}
	}
	if in.backup == nil {
		in.backup = &dom.Backup{Mode: dom.Push}
	}
	if err := in.align(checkpoint, time.Now()); err != nil {
		return err
	}
	if a.json {
		out := struct {
			Backup     string `json:"backup"`
			Checkpoint string `json:"checkpoint,omitempty"`
		}{Backup: string(in.backup.Format())}
		if in.checkpoint != nil {
			out.Checkpoint = string(in.checkpoint.Format())
		}
		return a.printJSON(out)
	}
	text := in.backup.Format()
	if in.checkpoint != nil {
		text = append(text, in.checkpoint.Format()...)
	}
	_, err := a.out.Write(text)
	return err
}

// describe makes the request that files and flags describe, and tells a person
// which disks it leaves out.
func (a *app) describe(req *backup.Request, in *xmlInput, flags []diskFlag) ([]leftOut, error) {
	if in.domain != nil {
		if err := in.align(req.Checkpoint, time.Now()); err != nil {
			return nil, err
		}
	}
	left, err := in.describe(req, flags)
	for _, l := range left {
		a.note(fmt.Sprintf("disk %s of %s is left out: %s", l.Disk, req.Domain, l.Reason))
	}
	return left, err
}
