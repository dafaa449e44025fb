// SPDX-License-Identifier: Apache-2.0

package httpserve

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/imgbackup/imgbackup/nbd"
)

// serveDisk sends a disk's bytes, or the ranges of them that a client wants.
func (s *Server) serveDisk(w http.ResponseWriter, r *http.Request, d *Disk) {
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("ETag", d.etag())
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	c := &content{ctx: ctx, disk: d, work: &s.work}
	http.ServeContent(&pipeWriter{ResponseWriter: w, piece: s.piece, stop: cancel}, r, "", time.Time{}, c)
	if f := c.failed.Load(); f != nil {
		s.cut(d, "read", f.at, f.err, r)
	}
}

// cut tells of a disk that could not be read, and ends the answer, of which a part may have
// been sent: whatever its client was told of its length, it is not whole.
func (s *Server) cut(d *Disk, what string, at int64, err error, r *http.Request) {
	if r.Context().Err() == nil {
		s.o.Notify(&nbd.DeviceError{Export: d.Path, What: what, Offset: at, Err: err})
	}
	panic(http.ErrAbortHandler)
}

// content is a disk as net/http reads it.
type content struct {
	ctx  context.Context
	disk *Disk
	work *sync.RWMutex // of the server
	pos  int64

	failed atomic.Pointer[failure] // of several ranges a goroutine of net/http reads
}

// failure is a device's error, and where it was met.
type failure struct {
	at  int64
	err error
}

var errEnded = errors.New("the server has ended")

// Read implements [io.Reader].
func (c *content) Read(p []byte) (int, error) {
	n := min(int64(len(p)), c.disk.Size-c.pos, maxPiece)
	if n <= 0 {
		return 0, io.EOF
	}
	if !c.work.TryRLock() {
		return 0, errEnded
	}
	defer c.work.RUnlock()
	if err := c.disk.Device.ReadAt(c.ctx, p[:n], c.pos); err != nil {
		c.failed.Store(&failure{c.pos, err})
		return 0, err
	}
	c.pos += n
	return int(n), nil
}

// Seek implements [io.Seeker].
func (c *content) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += c.pos
	case io.SeekEnd:
		offset += c.disk.Size
	}
	if offset < 0 || offset > c.disk.Size {
		return 0, errors.New("outside of the disk")
	}
	c.pos = offset
	return offset, nil
}

// pipeWriter sends one piece while the next is read.
type pipeWriter struct {
	http.ResponseWriter
	piece int // bytes
	stop  func()
}

// ReadFrom implements [io.ReaderFrom].
func (w *pipeWriter) ReadFrom(r io.Reader) (n int64, err error) {
	type piece struct {
		data []byte
		err  error
	}
	free, full := make(chan []byte, 2), make(chan piece, 2)
	free <- make([]byte, w.piece)
	free <- make([]byte, w.piece)
	go func() {
		defer close(full)
		for buf := range free {
			k, err := r.Read(buf)
			full <- piece{buf[:k], err}
			if err != nil {
				return
			}
		}
	}()
	defer func() { // nobody reads on for an answer that has ended
		w.stop()
		close(free)
		for range full {
		}
	}()
	for p := range full {
		k, werr := w.Write(p.data)
		n += int64(k)
		switch {
		case werr != nil:
			return n, werr
		case errors.Is(p.err, io.EOF):
			return n, nil
		case p.err != nil:
			return n, p.err
		}
		free <- p.data[:cap(p.data)]
	}
	return n, nil
}
