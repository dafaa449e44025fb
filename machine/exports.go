// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/nbd"
)

// flashPrefix begins the names of exports that are no disks; no disk's target has a dot.
const flashPrefix = "flash."

func (f *firmware) disk(name string, b []byte) Disk {
	return Disk{Name: flashPrefix + name, Size: int64(len(b)), Device: &flash{b: append([]byte(nil), b...)}}
}

// exports serves disks on sockets that nobody else can connect to.
type exports struct {
	server *nbd.Server
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	read   atomic.Int64 // of the disks, bytes
	o      *Options
	failed atomic.Pointer[error] // the first request that a disk failed
}

// counted counts what is read of a disk.
type counted struct {
	Disk
	read *atomic.Int64
}

func (c counted) ReadAt(ctx context.Context, p []byte, off int64) error {
	c.read.Add(int64(len(p)))
	return c.Device.ReadAt(ctx, p, off)
}

func (c counted) WriteAt(ctx context.Context, p []byte, off int64) error {
	return c.Device.WriteAt(ctx, p, off)
}

func (c counted) WriteZeroes(ctx context.Context, off, length int64, mayTrim bool) error {
	return c.Device.WriteZeroes(ctx, off, length, mayTrim)
}

func (c counted) Trim(ctx context.Context, off, length int64) error {
	return c.Device.Trim(ctx, off, length)
}

func (c counted) Flush(ctx context.Context) error { return c.Device.Flush(ctx) }

func serveDisks(disks []Disk, o *Options) (*exports, error) {
	e := &exports{o: o}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	var all []nbd.Export
	for _, d := range disks {
		all = append(all, nbd.Export{Name: d.Name, Size: d.Size, Device: counted{d, &e.read},
			Contexts: []nbd.Context{nbd.Allocation(func(context.Context, int64, int64) bitmapstore.Runs { return nil })}})
	}
	var err error
	e.server, err = nbd.NewServer(all, nbd.ServerOptions{Notify: e.notify, Connections: len(all)})
	if err != nil {
		e.cancel()
		return nil, err
	}
	return e, nil
}

func (e *exports) notify(err error) {
	var device *nbd.DeviceError
	if !errors.As(err, &device) || !e.failed.CompareAndSwap(nil, &err) {
		return
	}
	e.o.note("%v", err)
	if e.o.Fault != nil {
		e.o.Fault(device.Err)
	}
}

// connect returns the other end of a connection to the server.
func (e *exports) connect() (*os.File, error) {
	theirs, ours, err := socketPair()
	if err != nil {
		return nil, err
	}
	e.wg.Go(func() { _ = e.server.ServeConn(e.ctx, ours) }) // QEMU is killed in the end, and says no goodbye
	return theirs, nil
}

// end ends all connections, and waits for it.
func (e *exports) end() {
	e.cancel()
	e.wg.Wait()
}

// filePair is a pair of connected sockets.
func filePair() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return os.NewFile(uintptr(fds[0]), "socket"), os.NewFile(uintptr(fds[1]), "socket"), nil
}

// socketPair is a pair of connected sockets, one to be inherited, and ours.
func socketPair() (theirs *os.File, ours *net.UnixConn, err error) {
	theirs, f, err := filePair()
	if err != nil {
		return nil, nil, err
	}
	conn, err := net.FileConn(f)
	_ = f.Close() // the connection has its own copy
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return theirs, conn.(*net.UnixConn), nil
}
