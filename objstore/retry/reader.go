// SPDX-License-Identifier: Apache-2.0

package retry

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/imgbackup/imgbackup/objstore"
)

// retryReader reads on where a body broke off. It gives no byte twice, and
// none of another object than the one that it began with.
type retryReader struct {
	ctx      context.Context
	r        *retrying
	patience *patience
	key      string
	offset   int64 // of the next byte
	length   int64 // still to be read; -1 is to the end
	body     io.ReadCloser
	version  string // of what was read
	begun    bool   // some of it was
	err      error  // the last one; reading has ended
}

// open begins, or goes on, to read. cause is what made the last body fail, if
// anything did: it counts as a try.
func (g *retryReader) open(cause error) error {
	body, err := again(g.ctx, g.r, g.patience, func() (io.ReadCloser, error) {
		if err := cause; err != nil {
			cause = nil
			return nil, err
		}
		s, ok := g.r.store.(objstore.VersionGetter)
		if !ok {
			return g.r.store.Get(g.ctx, g.key, g.offset, g.length)
		}
		if !g.begun {
			g.version = "" // any will do
		}
		body, err := s.GetVersion(g.ctx, g.key, g.offset, g.length, g.version)
		if err != nil {
			if g.begun && errors.Is(err, objstore.ErrReplaced) {
				err = objstore.MarkPermanent(err)
			}
			return nil, err
		}
		g.version = body.Version()
		return body, nil
	})
	g.body = body
	return err
}

// Version is that of all that was read, for [objstore.VersionReader].
func (g *retryReader) Version() string { return g.version }

func (g *retryReader) Read(p []byte) (int, error) {
	for g.err == nil {
		if len(p) == 0 {
			return 0, nil
		}
		n, err := g.body.Read(p)
		if n > 0 {
			g.begun = true
			g.offset += int64(n)
			if g.length > 0 {
				g.length -= int64(n)
			}
			g.patience.Reset()
		}
		if err != nil {
			g.fail(err)
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, g.err
}

// fail decides what becomes of a reader whose body ended: it goes on with
// another body, or g.err says how it ended.
func (g *retryReader) fail(err error) {
	_ = g.body.Close() // it is of no more use
	g.body = nil
	switch {
	case err == io.EOF, err == io.ErrUnexpectedEOF: // the store's own word, not a failure
		g.err = err
	case g.ctx.Err() != nil, objstore.Permanent(err):
		g.err = err
	case g.begun && g.version == "":
		g.err = err // what stands there now might be another object
	default:
		g.err = g.open(err)
		if errors.Is(g.err, objstore.ErrNotFound) {
			g.err = fmt.Errorf("read %s: the object was removed while it was being read", g.key)
		}
	}
}

func (g *retryReader) Close() error {
	if g.body == nil {
		return nil
	}
	body := g.body
	g.body = nil
	if g.err == nil {
		g.err = errClosed
	}
	return body.Close()
}

var errClosed = errors.New("the object's reader is closed")
