// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"

	lima "github.com/lima-vm/go-qcow2reader/image/qcow2"
)

// DisagreementError says that two independent readers of an image read
// different guest data in one place. One of them has a fault, or the image
// changed while it was read: nothing read from it is to be relied on.
type DisagreementError struct {
	Path   string // of the layer
	Offset int64  // guest offset of the first byte that differs
}

func (e *DisagreementError) Error() string {
	return fmt.Sprintf("%s: two independent readers disagree on the guest data at offset %d; the backup is stopped, please report this", e.Path, e.Offset)
}

// CrossCheck reads a sample of the allocated clusters of all qcow2 layers a
// second time, by go-qcow2reader, and compares. It returns a
// [*DisagreementError], or what else keeps this package from reading the
// sample. Where the other reader cannot tell, because it fails or does not know
// a feature, nothing is compared.
func (c *Image) CrossCheck(ctx context.Context, samples int, rnd *rand.Rand) error {
	_, err := c.crossCheck(ctx, samples, rnd)
	return err
}

// crossCheck returns how many clusters were compared, too.
func (c *Image) crossCheck(ctx context.Context, samples int, rnd *rand.Rand) (compared int, err error) {
	var layers []int
	for i, l := range c.Layers {
		if l.secondOpinion() {
			layers = append(layers, i)
		}
	}
	for k, i := range layers {
		share := samples/len(layers) + min(1, max(0, samples%len(layers)-k))
		n, err := c.crossCheckLayer(ctx, i, share, rnd)
		compared += n
		if err != nil {
			return compared, err
		}
	}
	return compared, nil
}

// maxOpinionL1 bounds the L1 table of images that are read a second time: the
// other reader holds all of it in memory, twice while it reads it.
const maxOpinionL1 = 8 << 20

// secondOpinion reports whether go-qcow2reader v0.7.1 can read guest data of the
// layer correctly, compressed clusters apart.
func (l *Layer) secondOpinion() bool {
	h := l.Header
	return h != nil && h.Incompatible == 0 && h.L1Offset != 0 && h.L1Entries > 0 && h.L1Entries*8 <= maxOpinionL1 && l.Size > 0
}

// opinionCompressed reports whether it can read compressed clusters, too: it
// gives up on small ones, and knows zlib only.
func (l *Layer) opinionCompressed() bool {
	return l.Header.ClusterSize() >= 32<<10 && l.Header.Compression == Zlib
}

func (c *Image) crossCheckLayer(ctx context.Context, layer, samples int, rnd *rand.Rand) (compared int, err error) {
	l := c.Layers[layer]
	other := openOpinion(l.file)
	if other == nil {
		return 0, nil
	}
	cs := l.Header.ClusterSize()
	ours, theirs := make([]byte, cs), make([]byte, cs)
	for range samples {
		if err := ctx.Err(); err != nil {
			return compared, err
		}
		at, length, err := c.sample(ctx, layer, rnd.Int64N(l.Size))
		if err != nil {
			return compared, err
		}
		if length == 0 {
			continue
		}
		if err := c.readLayer(ctx, layer, ours[:length], at); err != nil {
			if c.opts.Salvage && ctx.Err() == nil {
				continue
			}
			return compared, err
		}
		if !opinion(other, theirs[:length], at) {
			continue
		}
		compared++
		if !bytes.Equal(ours[:length], theirs[:length]) {
			for ours[0] == theirs[0] {
				ours, theirs, at = ours[1:], theirs[1:], at+1
			}
			return compared, &DisagreementError{Path: l.Path, Offset: at}
		}
	}
	return compared, nil
}

// opinionPiece is what of a compressed cluster is compared: for each of them the other reader
// inflates all that lies before it in the cluster, too.
const opinionPiece = 32 << 10

// sample finds a cluster with guest data at or after from, or else before it, or a
// piece of one that is compressed; length 0: there is none that both readers can read.
func (c *Image) sample(ctx context.Context, layer int, from int64) (at, length int64, err error) {
	l := c.Layers[layer]
	cs := l.Header.ClusterSize()
	piece := from % cs &^ (opinionPiece - 1)
	from &^= cs - 1
	for _, r := range [][2]int64{{from, l.Size}, {0, from}} {
		for e, err := range c.LayerExtents(layer, r[0], r[1]) {
			if err := errors.Join(err, ctx.Err()); err != nil {
				return 0, 0, err
			}
			if e.Kind == Data || e.Kind == Compressed && l.opinionCompressed() {
				// Extents may begin within a cluster, where a part of it is a
				// hole in the file.
				at, end := e.Offset, min(e.Offset&^(cs-1)+cs, e.Offset+e.Length)
				if e.Kind == Compressed {
					at = min(max(at, at&^(cs-1)+piece), end-1)
					end = min(end, at+opinionPiece)
				}
				return at, end - at, nil
			}
		}
	}
	return 0, 0, nil
}

// openOpinion opens an image in the other reader; nil: it cannot.
func openOpinion(f *File) (img *lima.Qcow2) {
	defer func() {
		if recover() != nil {
			img = nil
		}
	}()
	img, err := lima.Open(&aloneReader{f: f}, nil)
	if err != nil || img.Readable() != nil {
		return nil
	}
	return img
}

// opinion fills p with what the other reader reads; false: it cannot tell.
func opinion(img *lima.Qcow2, p []byte, off int64) (ok bool) {
	defer func() {
		if recover() != nil {
			ok = false
		}
	}()
	n, err := img.ReadAt(p, off)
	return n == len(p) && (err == nil || errors.Is(err, io.EOF))
}

// aloneReader reads an image as if it had no backing file, so that a reader
// that follows any name it finds, follows none.
type aloneReader struct{ f *File }

// The header's fields that name the backing file: an offset and a length.
const backingFieldStart, backingFieldEnd = 8, 20

func (a *aloneReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := a.f.ReadAt(p, off)
	for i := max(off, backingFieldStart); i < min(off+int64(n), backingFieldEnd); i++ {
		p[i-off] = 0
	}
	return n, err
}
