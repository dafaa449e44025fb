// SPDX-License-Identifier: Apache-2.0

package split

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/imgbackup/imgbackup/objstore"
)

// reader reads a range of an object, in order.
type reader struct {
	store  *store
	ctx    context.Context
	cancel context.CancelFunc
	key    string
	end    int64
	next   int64 // up to where pieces were begun; under the lock of the pool

	found chan error  // told once how the first piece that was answered was
	begun chan *piece // in their order
	work  sync.WaitGroup

	now  *piece // being read
	read int    // bytes of it
	left int64  // bytes of all, still to be given
	err  error  // reading has ended
}

// fetch reads the piece at offset into buf. It returns what came, and why that is not all.
func (r *reader) fetch(buf []byte, offset int64) ([]byte, error) {
	body, err := r.store.Store.Get(r.ctx, r.key, offset, int64(len(buf)))
	select {
	case r.found <- err:
	default:
	}
	if err != nil {
		if errors.Is(err, objstore.ErrNotFound) {
			err = io.ErrUnexpectedEOF // unless Get says it: it is gone since the reading began
		}
		return buf[:0], err
	}
	n, err := io.ReadFull(body, buf)
	if cerr := body.Close(); err == nil {
		err = cerr
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return buf[:n], err
}

// Read implements [io.Reader].
func (r *reader) Read(p []byte) (int, error) {
	for len(p) > 0 && r.err == nil {
		if r.now == nil {
			r.err = r.wait()
			continue
		}
		if n := copy(p, r.now.data[r.read:]); n > 0 {
			r.read += n
			r.left -= int64(n)
			return n, nil
		}
		r.err = r.now.err
		r.giveBack()
	}
	return 0, r.err
}

// wait is for the next piece.
func (r *reader) wait() error {
	if r.left == 0 {
		return io.EOF
	}
	select {
	case r.now = <-r.begun:
	case <-r.ctx.Done():
		return context.Cause(r.ctx)
	}
	select {
	case <-r.now.done:
		return nil
	case <-r.ctx.Done():
		return context.Cause(r.ctx) // Close gives it back
	}
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
