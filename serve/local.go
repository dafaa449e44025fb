// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/imgbackup/imgbackup/nbd"
	"github.com/imgbackup/imgbackup/view"
)

// Local is a server of a checkpoint's disks, read-only, for programs that we run
// ourselves. What they make of a read that failed is no news: the server knows why.
type Local struct {
	Socket  string       // its path
	Exports []nbd.Export // in the order of the disks

	note   func(string)
	cancel context.CancelFunc
	ended  chan struct{}

	read atomic.Int64 // by clients, bytes

	mu    sync.Mutex
	first error // that a client was answered with
}

// StartLocal serves the disks of c on a socket in dir, a folder with a short path that only
// we can enter, until Stop or until ctx ends. note is told of reads that failed.
func StartLocal(ctx context.Context, c *view.Checkpoint, dir string, note func(string)) (*Local, error) {
	l := &Local{Socket: filepath.Join(dir, "nbd.sock"), note: note, ended: make(chan struct{})}
	for _, d := range c.Disks {
		e, err := Export(ctx, c, d, nil, nil)
		if err != nil {
			return nil, err
		}
		e.Device, e.Lend = counted{e.Device, &l.read}, nil
		l.Exports = append(l.Exports, e)
	}
	n, err := nbd.NewServer(l.Exports, nbd.ServerOptions{Notify: l.notify})
	if err != nil {
		return nil, err
	}
	listener, err := nbd.ListenUnix(ctx, l.Socket)
	if err != nil {
		return nil, err
	}
	ctx, l.cancel = context.WithCancel(ctx)
	go func() {
		defer close(l.ended)
		_ = n.Serve(ctx, listener) // how it ended its clients say
		_ = listener.Close()       // nothing is lost with it
	}()
	return l, nil
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
func (l *Local) notify(err error) {
	var failed *nbd.DeviceError
	if !errors.As(err, &failed) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.first == nil {
		l.first = failed.Err
		l.note(err.Error())
	}
}

// Read is how much clients have read so far, bytes.
func (l *Local) Read() int64 { return l.read.Load() }

// Fault is the first read that failed; nil: none did.
func (l *Local) Fault() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.first
}

// Forget forgets the first read that failed.
func (l *Local) Forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.first = nil
}

// Stop ends it; nobody can connect afterwards.
func (l *Local) Stop() {
	l.cancel()
	<-l.ended
	_ = os.Remove(l.Socket) // closing it has, most often
}
