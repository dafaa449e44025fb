// SPDX-License-Identifier: Apache-2.0

package request

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/pull"
	dom "github.com/imgbackup/imgbackup/domain"
	"github.com/imgbackup/imgbackup/internal/usage"
)

// Export is what a person says of a pull backup, in the words of the command line.
type Export struct {
	Domain string               // empty: the definition's
	XML    Files                // libvirt's
	Disks  []string             // TARGET=PATH,format=FORMAT…; beside a definition what differs from it
	Known  []backup.DiskRequest // more disks, that nobody need read
	TLS    bool                 // the server has a certificate
	Engine backup.Request
}

// NamesNone is as that of [Backup].
func (e *Export) NamesNone() bool { return namesNone(e.Domain, e.Disks, e.XML) }

// Take takes the disks that were found.
func (e *Export) Take(l *Last) { e.XML.Domain, e.Disks, e.Known = l.Definition, l.Disks, l.Known }

// ExportJob is the pull backup of one domain, as the engine takes it.
type ExportJob struct {
	Request backup.Request // an empty mode of a disk: incremental if it or the request names a checkpoint
	Names   []pull.Names
	Notes   []string      // that a person should read
	Server  *Server       // that the backup XML demands; nil: it is for the caller to choose
	Scratch []ScratchFile // that the backup XML names, and that are not used
}

// Server is where a pull backup's XML wants it to be offered: one of the two.
type Server struct {
	Socket  string // a path
	Address string // host:port
}

// ScratchFile is what the backup XML gives a disk; the images are locked while they
// are served, and need none.
type ScratchFile struct{ Disk, Path string }

// Job reads what is named and makes the request of it.
func (e *Export) Job(stdin io.Reader) (ExportJob, error) {
	j := ExportJob{Request: e.Engine}
	in, err := e.XML.readOf(e.Domain, stdin)
	if err != nil {
		return j, err
	}
	if j.Request.Domain, err = in.DomainName(e.Domain); err != nil {
		return j, err
	}
	disks, err := parseDisks(e.Disks, toExport, in.domain != nil)
	if err != nil {
		return j, err
	}
	disks = append(disks, known(e.Known)...)
	for _, d := range disks {
		if !d.leaveOut {
			j.Names = append(j.Names, d.names)
		}
	}
	if err := in.fill(&j.Request, disks, toExport); err != nil {
		return j, err
	}
	j.Notes = in.notes
	if in.backup != nil {
		if err := j.fillPull(in, e.TLS); err != nil {
			return j, usage.Errorf("backup XML: %w", err)
		}
	}
	if j.Request.Checkpoint == "" && (j.Request.Description != "" || j.Request.Adopt || j.Request.LibvirtNames) {
		return j, usage.Errorf("--description, --adopt and --libvirt-names belong to a checkpoint: name it with --checkpoint")
	}
	if err := checkNewName(j.Request.Checkpoint); err != nil {
		return j, err
	}
	return j, pull.Check(j.Names)
}

// fillPull takes names and the place of the server from a domainbackup.
func (j *ExportJob) fillPull(in *XML, tls bool) (err error) {
	for _, bd := range in.backup.Disks {
		if bd.Backup {
			j.Names = append(j.Names, pull.Names{Disk: bd.Name, Export: bd.ExportName, Bitmap: bd.ExportBitmap})
		}
	}
	for _, bd := range in.stores {
		j.Scratch = append(j.Scratch, ScratchFile{bd.Name, bd.Store.Path})
	}
	j.Server, err = newServer(in.backup.Server, tls)
	return err
}

func newServer(s *dom.Server, tls bool) (*Server, error) {
	switch {
	case s == nil:
		return nil, errors.New("a pull backup needs a <server>")
	case s.TLS == "yes" && !tls:
		return nil, errors.New("<server tls='yes'> needs --tls-cert and --tls-key")
	case s.TLS != "yes" && tls:
		return nil, errors.New("--tls-cert needs <server tls='yes'>")
	case s.Transport == "unix":
		return &Server{Socket: s.Socket}, nil
	case s.Transport == "tcp":
		return &Server{Address: net.JoinHostPort(s.Name, strconv.Itoa(int(s.Port)))}, nil
	}
	return nil, fmt.Errorf("<server transport='%s'> is not supported: unix and tcp are, and sockets that systemd hands over to an export without a backup XML", s.Transport)
}
