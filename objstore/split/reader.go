// SPDX-License-Identifier: Apache-2.0

package split

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/imgbackup/imgbackup/objstore"
)

// reader reads a range of an object, in order: pieces that are in memory or on their way
// there, and what lies between them as it comes.
type reader struct {
	store     *store
	ctx       context.Context
	cancel    context.CancelFunc
	key       string
	next, end int64 // what is not asked for; under the lock of the pool
	placed    bool  // it has a place; likewise

	turn  chan span   // what to read through a connection
	begun chan *piece // in their order
	work  sync.WaitGroup

	through io.ReadCloser // what is read as it comes
	rest    int64         // bytes of that
	now     *piece        // or what is read of the memory
	read    int           // bytes of it
	err     error         // reading has ended
}

// fetch reads the piece at offset into buf. It returns what came, and why that is not all.
func (r *reader) fetch(buf []byte, offset int64) ([]byte, error) {
	body, err := r.store.Store.Get(r.ctx, r.key, offset, int64(len(buf)))
	if err != nil {
		return buf[:0], goneMeanwhile(err)
	}
	n, err := io.ReadFull(body, buf)
	if cerr := body.Close(); err == nil {
		err = cerr
	}
	return buf[:n], unexpected(err)
}

// goneMeanwhile is err of what was there when the reading began.
func goneMeanwhile(err error) error {
	if errors.Is(err, objstore.ErrNotFound) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// open waits for the turn to read on, which was asked for, and begins to.
func (r *reader) open() error {
	select {
	case s := <-r.turn:
		body, err := r.store.Store.Get(r.ctx, r.key, s.offset, s.length)
		if err != nil {
			r.store.pool.end()
			return err
		}
		r.through, r.rest = body, s.length
		return nil
	case <-r.ctx.Done():
		return context.Cause(r.ctx) // Close gives back what comes
	}
}

// Read implements [io.Reader].
func (r *reader) Read(p []byte) (int, error) {
	for len(p) > 0 && r.err == nil {
		n := 0
		switch {
		case r.through != nil:
			n, r.err = r.readThrough(p)
		case r.now != nil:
			n, r.err = r.readNow(p)
		default:
			r.err = r.wait()
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, r.err
}

func (r *reader) readThrough(p []byte) (int, error) {
	n, err := r.through.Read(p[:min(int64(len(p)), r.rest)])
	if r.rest -= int64(n); r.rest == 0 && (err == nil || err == io.EOF) {
		return n, r.endThrough()
	}
	return n, unexpected(err)
}

func (r *reader) endThrough() error {
	err := r.through.Close()
	r.through = nil
	r.store.pool.end()
	return err
}

func (r *reader) readNow(p []byte) (int, error) {
	if n := copy(p, r.now.data[r.read:]); n > 0 {
		r.read += n
		return n, nil
	}
	err := r.now.err
	r.giveBack()
	return 0, err
}

// wait is for the next piece.
func (r *reader) wait() error {
	select {
	case r.now = <-r.begun:
	default:
		return r.readOn()
	}
	select {
	case <-r.now.done:
		return nil
	case <-r.ctx.Done():
		return context.Cause(r.ctx) // Close gives it back
	}
}

// readOn is where nothing is in memory, or on its way there.
func (r *reader) readOn() error {
	switch r.store.pool.want(r) {
	case ended:
		return io.EOF
	case another:
		return r.wait()
	}
	return goneMeanwhile(r.open())
}

// giveBack is of the piece that is being read, once that is done.
func (r *reader) giveBack() {
	r.store.pool.giveBack(r.now)
	r.now, r.read = nil, 0
}

var errClosed = errors.New("the object's reader is closed")

// Close implements [io.Closer]. It waits for what is being fetched, which it ends.
func (r *reader) Close() error {
	r.cancel()
	r.store.pool.drop(r)
	r.work.Wait()
	if r.through != nil {
		_ = r.endThrough() // nothing more of it is wanted
	}
	if r.now != nil {
		r.giveBack()
	}
	for {
		select {
		case pc := <-r.begun:
			r.store.pool.giveBack(pc)
			continue
		default:
		}
		break
	}
	r.err = errClosed
	return nil
}
