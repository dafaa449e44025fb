// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"strconv"

	"github.com/imgbackup/imgbackup/backup/pull"
)

// describeExport fills in what the XML of libvirt, and the --disk beside it, say of
// an export.
func (a *app) describeExport(j *exportJob, in *xmlInput, flags []diskFlag) error {
	in.pull = true
	if _, err := a.describe(&j.req, in, flags); err != nil {
		return err
	}
	if in.backup != nil {
		if err := a.describePull(j, in); err != nil {
			return usageError{fmt.Errorf("backup XML: %w", err)}
		}
	}
	return nil
}

// describePull takes names and the place of the server from a domainbackup.
func (a *app) describePull(j *exportJob, in *xmlInput) error {
	for _, bd := range in.backup.Disks {
		if bd.Backup {
			j.names = append(j.names, pull.Names{Target: bd.Name, Export: bd.ExportName, Bitmap: bd.ExportBitmap})
		}
	}
	for _, bd := range in.targets {
		a.note(fmt.Sprintf("disk %s: the scratch file %s is not used: the images are locked while they are served, and need none",
			bd.Name, bd.Store.Path))
	}
	s := in.backup.Server
	if s == nil {
		return errors.New("a pull backup needs a <server>")
	}
	switch {
	case s.TLS == "yes" && j.listen.cert == "":
		return errors.New("<server tls='yes'> needs --tls-cert and --tls-key")
	case s.TLS != "yes" && j.listen.cert != "":
		return errors.New("--tls-cert needs <server tls='yes'>")
	}
	switch s.Transport {
	case "unix":
		j.listen.socket = s.Socket
	case "tcp":
		j.listen.address = net.JoinHostPort(s.Name, strconv.Itoa(int(s.Port)))
	default:
		return fmt.Errorf("<server transport='%s'> is not supported: unix and tcp are, and sockets that systemd hands over to an export without a backup XML", s.Transport)
	}
	return nil
}
