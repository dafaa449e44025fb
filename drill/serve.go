// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"net/url"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/serve"
	"github.com/imgbackup/imgbackup/view"
)

// server serves the disks of a subject, once somebody asks for it.
type server struct {
	repo  *chain.Repository
	m     *chain.Manifest
	disks []*chain.Disk
	dir   func() (string, error) // where the socket goes, a short path
	note  func(string)
	near  nearby // where bytes may be had, too; nil: nowhere

	served *Served
	view   *view.Checkpoint
	local  *serve.Local // nil: nobody has asked for it
}

// nearby is where the bytes of an entry of a disk may be had: see [view.Options].
type nearby func(ctx context.Context, disk string, e *archive.Entry, p []byte) bool

// start serves the disks until stop, or until ctx, of the checkpoint's drill, ends.
func (s *server) start(ctx context.Context) (_ *Served, err error) {
	if s.served != nil {
		return s.served, nil
	}
	defer func() {
		if err != nil && s.view != nil {
			s.view.Close()
			s.view = nil
		}
	}()
	dir, err := s.dir()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, d := range s.disks {
		names = append(names, d.Name)
	}
	if s.view, err = view.Open(ctx, s.repo, s.m, names, view.Options{Near: s.near, NoAhead: s.near != nil}); err != nil {
		return nil, err
	}
	local, err := serve.StartLocal(ctx, s.view, dir, s.note)
	if err != nil {
		return nil, err
	}
	s.local, s.served = local, &Served{Socket: local.Socket}
	for _, e := range local.Exports {
		uri := "nbd+unix:///" + url.PathEscape(e.Name) + "?socket=" + url.QueryEscape(local.Socket)
		s.served.Disks = append(s.served.Disks, ServedDisk{Disk: e.Name, Size: e.Size, URI: uri})
	}
	return s.served, nil
}

// read is how much clients have read so far, bytes.
func (s *server) read() int64 {
	if s.local == nil {
		return 0
	}
	return s.local.Read()
}

// fault is the first read that failed.
func (s *server) fault() error {
	if s.local == nil {
		return nil
	}
	return s.local.Fault()
}

// forget forgets the first read that failed.
func (s *server) forget() {
	if s.local != nil {
		s.local.Forget()
	}
}

// stop ends it; nobody can connect afterwards.
func (s *server) stop() {
	if s.local != nil {
		s.local.Stop()
	}
	if s.view != nil {
		s.view.Close()
	}
}
