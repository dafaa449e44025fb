// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/imgbackup/imgbackup/nbd"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/qemu"
)

// image is an open image.
type image struct {
	ctx     context.Context
	stop    func() bool // of what ends the process with ctx
	process *qemu.NBD
	client  *nbd.Client
	how     string
}

// Opener is for [qcow2.OpenOptions]. The images that it opens must be closed, and
// cannot be read any more when ctx has ended.
func Opener(ctx context.Context, o Options) func(path string, format qcow2.Format) (qcow2.Foreign, error) {
	return func(path string, format qcow2.Format) (qcow2.Foreign, error) {
		im, err := open(ctx, path, format, o)
		if err != nil {
			return nil, err
		}
		return im, nil
	}
}

func open(ctx context.Context, path string, format qcow2.Format, o Options) (_ *image, err error) {
	if err := check(path, format); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "imgbackup-nbd-")
	if err != nil {
		return nil, err
	}
	// A connection outlives the name of its socket.
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	socket := filepath.Join(dir, "s")
	p, err := start(path, socket, format, o)
	if err != nil {
		return nil, fmt.Errorf("open %s by qemu-nbd: %w", path, err)
	}
	c, err := connect(ctx, p, socket)
	if err != nil {
		p.Kill()
		if strings.Contains(err.Error(), "Invalid password") {
			return nil, fmt.Errorf("open %s: the passphrase in %s is not the image's (all bytes of the file count, including a line feed at its end)", path, o.KeyFile)
		}
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	what := "format " + string(format)
	if format == qcow2.Qcow2 {
		what = "an encrypted qcow2 image"
	}
	return &image{
		ctx: ctx, process: p, client: c, stop: context.AfterFunc(ctx, p.Kill),
		how: "qemu-nbd (" + what + " is not read natively)",
	}, nil
}

func (im *image) Size() int64 { return im.client.Size() }

func (im *image) How() string { return im.how }

func (im *image) ReadAt(ctx context.Context, p []byte, off int64) error {
	// The context of one reader must not end the connection of all.
	if err := ctx.Err(); err != nil {
		return err
	}
	return im.failed(im.client.ReadAt(im.ctx, p, off))
}

func (im *image) Extents(start, end int64) iter.Seq2[qcow2.Extent, error] {
	return func(yield func(qcow2.Extent, error) bool) {
		if len(im.client.Contexts()) == 0 {
			yield(qcow2.Extent{Offset: start, Length: end - start, Kind: qcow2.Data}, nil)
			return
		}
		if start == end {
			return
		}
		for e, err := range im.client.Extents(im.ctx, nbd.BaseAllocation, start, end) {
			if err != nil {
				yield(qcow2.Extent{}, im.failed(err))
				return
			}
			out := qcow2.Extent{Offset: e.Start, Length: e.End - e.Start, Kind: qcow2.Data}
			switch {
			case e.Flags&nbd.StateZero == 0: // a hole need not read as zeros
			case e.Flags&nbd.StateHole != 0:
				out.Kind = qcow2.Hole
			default:
				out.Kind = qcow2.Zero
			}
			if !yield(out, nil) {
				return
			}
		}
	}
}

// failed tells what else is known about an error.
func (im *image) failed(err error) error {
	if err == nil {
		return nil
	}
	if im.ctx.Err() != nil {
		return context.Cause(im.ctx)
	}
	var server *nbd.ServerError
	if errors.As(err, &server) && server.Code == uint32(syscall.EIO) {
		return fmt.Errorf("%w: %w", syscall.EIO, err) // the server is well, what it reads is not
	}
	return im.process.Explain(err)
}

func (im *image) Close() error {
	im.stop()
	_ = im.client.Close() // it has only read
	im.process.Kill()
	return nil
}
