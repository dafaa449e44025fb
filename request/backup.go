// SPDX-License-Identifier: Apache-2.0

package request

import (
	"io"
	"slices"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/push"
	"github.com/imgbackup/imgbackup/domain/manager"
	"github.com/imgbackup/imgbackup/internal/usage"
)

// Backup is what a person says of a backup, in the words of the command line.
type Backup struct {
	Domain      string               // empty: the definition's
	XML         Files                // libvirt's
	Disks       []string             // TARGET=PATH,format=FORMAT…; beside a definition what differs from it
	Known       []backup.DiskRequest // more disks, that nobody need read
	WithFiles   []string             // NAME=PATH: files that are archived beside the disks
	Targets     []string             // TARGET=PATH…: push mode
	Mode        string               // empty: auto, or incremental if a checkpoint is named
	Compression string               // a level of [archive.LevelNames]; empty: the fastest
	LimitRate   string               // bytes per second, as 50M; empty: no limit
	// Engine is what the engine takes as it is: Since, Checkpoint, Description, MaxLock
	// and all that is yes or no.
	Engine backup.Request
}

// Job is the backup of one domain, as the engines take it.
type Job struct {
	Request backup.Request
	Targets []push.Target // push mode; none: the disks go into the repository
	Notes   []string      // that a person should read
}

// NamesNone reports whether nothing but the domain is named, so that its disks are to
// be found by [FindLast].
func (b *Backup) NamesNone() bool { return namesNone(b.Domain, b.Disks, b.XML) }

// Take takes the disks that were found.
func (b *Backup) Take(l *Last) {
	b.XML.Domain, b.Disks, b.Known = l.Definition, l.Disks, l.Known
	b.WithFiles = takeFiles(b.WithFiles, l.Files)
}

func namesNone(domain string, disks []string, x Files) bool {
	if _, _, ok := manager.Split(domain); ok {
		return false // its manager knows them
	}
	return domain != "" && len(disks) == 0 && x.Domain+x.Backup+x.Checkpoint == ""
}

// Check returns an error for words that are wrong whatever the XML says.
func (b *Backup) Check() error {
	_, err := b.engine()
	return err
}

// engine is the request as far as no XML is needed for it.
func (b *Backup) engine() (req backup.Request, err error) {
	req = b.Engine
	mode := backup.Mode(b.Mode)
	switch {
	case mode == "" && req.Since != "":
		mode = backup.Incremental
	case mode == "":
		mode = backup.Auto
	}
	if req.Mode, err = backup.ParseMode(string(mode)); err != nil {
		return req, usage.Errorf("--mode: %w", err)
	}
	if req.Level, err = archive.ParseLevel(b.Compression); err != nil {
		return req, usage.Errorf("--compression: %w", err)
	}
	if b.LimitRate != "" {
		if req.RateLimit, err = ParseRate(b.LimitRate); err != nil {
			return req, err
		}
	}
	if req.MaxLock < 0 {
		return req, usage.Errorf("--max-lock %s: want a time, as 90s or 30m", req.MaxLock)
	}
	return req, nil
}

// Latest is a name for a domain's newest checkpoint, which no new one can have.
const Latest = "latest"

func checkNewName(name string) error {
	if name == Latest {
		return usage.Errorf("checkpoint %s: that is a name for the newest one, whatever it is called: choose another", name)
	}
	return nil
}

// Job reads what is named and makes the request of it. What it leaves out is also
// returned with an error that wraps [ErrNoDisks].
func (b *Backup) Job(stdin io.Reader) (Job, error) {
	req, err := b.engine()
	if err != nil {
		return Job{}, err
	}
	in, err := b.XML.readOf(b.Domain, stdin)
	if err != nil {
		return Job{}, err
	}
	j := Job{Request: req}
	if j.Request.Domain, err = in.DomainName(b.Domain); err != nil {
		return j, err
	}
	disks, err := parseDisks(b.Disks, toBackUp, in.domain != nil)
	if err != nil {
		return j, err
	}
	disks = append(disks, known(b.Known)...)
	if err := in.fill(&j.Request, disks, toBackUp); err != nil {
		return j, err
	}
	files, err := parseFiles(b.WithFiles)
	if err != nil {
		return j, err
	}
	j.Request.Files = append(j.Request.Files, files...)
	j.Notes = in.notes
	if err := checkNewName(j.Request.Checkpoint); err != nil {
		return j, err
	}
	j.Targets, err = b.targets(in, &j.Request)
	return j, err
}

// targets are those that the backup's XML or --target give, and what only an
// archive has use for is refused beside them.
func (b *Backup) targets(in *XML, req *backup.Request) ([]push.Target, error) {
	if len(b.Targets) == 0 && len(in.stores) == 0 {
		return nil, nil
	}
	targets, err := in.pushTargets()
	if err != nil {
		return nil, err
	}
	given, err := parseTargets(b.Targets)
	if err != nil {
		return nil, err
	}
	targets = append(targets, given...)
	for _, d := range req.Disks {
		if !slices.ContainsFunc(targets, func(t push.Target) bool { return t.Disk == d.Disk }) {
			return nil, usage.Errorf("disk %s has no --target, and no <target> in the backup XML: either every disk of a backup goes to a file of its own, or all go into the repository (two runs can do both)", d.Disk)
		}
	}
	switch {
	case req.Checkpoint == "" && req.Description != "":
		return nil, usage.Errorf("--description with --target belongs to a checkpoint: name it with --checkpoint")
	case req.Checkpoint == "" && len(req.Tags) > 0:
		return nil, usage.Errorf("--tag with --target belongs to a checkpoint: name it with --checkpoint")
	case req.Checkpoint == "" && req.Adopt:
		return nil, usage.Errorf("--adopt with --target belongs to a checkpoint: name it with --checkpoint")
	case req.Checkpoint == "" && req.LibvirtNames:
		return nil, usage.Errorf("--libvirt-names with --target belongs to a checkpoint: name it with --checkpoint")
	case req.Audit:
		return nil, usage.Errorf("--audit compares with the archive in the repository, to which a backup with --target adds nothing")
	case len(b.WithFiles) > 0:
		return nil, usage.Errorf("--with-file goes into the repository, and a backup with --target does not")
	case req.SkipUnchanged:
		return nil, usage.Errorf("--skip-unchanged is about checkpoints in the repository: a disk goes to a --target all the same")
	case req.NoCheckpoint && req.Checkpoint != "":
		return nil, usage.Errorf("--checkpoint and --no-checkpoint exclude each other")
	}
	return targets, nil
}
