// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/nbd"
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
	cancel context.CancelFunc
	ended  chan struct{}

	read atomic.Int64 // by clients, bytes

	mu    sync.Mutex
	first error // that a client was answered with
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
	served := &Served{Socket: filepath.Join(dir, "nbd.sock")}
	var exports []nbd.Export
	for _, d := range s.view.Disks {
		e, err := serve.Export(ctx, s.view, d, nil, nil)
		if err != nil {
			return nil, err
		}
		e.Device = counted{e.Device, &s.read}
		exports = append(exports, e)
		uri := "nbd+unix:///" + url.PathEscape(d.Name) + "?socket=" + url.QueryEscape(served.Socket)
		served.Disks = append(served.Disks, ServedDisk{Disk: d.Name, Size: d.Size(), URI: uri})
	}
	n, err := nbd.NewServer(exports, nbd.ServerOptions{Notify: s.notify})
	if err != nil {
		return nil, err
	}
	l, err := nbd.ListenUnix(ctx, served.Socket)
	if err != nil {
		return nil, err
	}
	ctx, s.cancel = context.WithCancel(ctx)
	ended := make(chan struct{})
	s.ended = ended
	go func() {
		defer close(ended)
		_ = n.Serve(ctx, l) // how it ended its clients say
		_ = l.Close()       // nothing is lost with it
	}()
	s.served = served
	return served, nil
}

// counted counts what is read of a disk.
type counted struct {
	nbd.Device
	read *atomic.Int64
}

func (c counted) ReadAt(ctx context.Context, p []byte, off int64) error {
	c.read.Add(int64(len(p)))
	return c.Device.ReadAt(ctx, p, off)
}

// notify keeps the first read that failed; that a client has gone is no news.
func (s *server) notify(err error) {
	var failed *nbd.DeviceError
	if !errors.As(err, &failed) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.first == nil {
		s.first = failed.Err
		s.note(err.Error())
	}
}

// fault is the first read that failed.
func (s *server) fault() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.first
}

// forget forgets the first read that failed.
func (s *server) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.first = nil
}

// stop ends it; nobody can connect afterwards.
func (s *server) stop() {
	if s.cancel != nil {
		s.cancel()
		<-s.ended
		_ = os.Remove(s.served.Socket) // closing it has, most often
	}
	if s.view != nil {
		s.view.Close()
	}
}
