// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// maxZstdWindow is the largest window of a zstd frame that is decoded, in
// bytes: four times the largest cluster.
const maxZstdWindow = 8 << 20

// decompressor turns compressed clusters into guest data. It must not be used
// by several goroutines at once.
type decompressor struct {
	input bytes.Reader
	flate io.ReadCloser // also a flate.Resetter
	zstd  *zstd.Decoder
}

// decompressors keeps decompressors for reuse.
type decompressors struct{ pool sync.Pool }

func (d *decompressors) get() *decompressor {
	if z, ok := d.pool.Get().(*decompressor); ok {
		return z
	}
	return &decompressor{}
}

func (d *decompressors) put(z *decompressor) {
	z.input.Reset(nil)
	d.pool.Put(z)
}

// cluster fills out, which is exactly one cluster, with what data holds. data
// may go on after the compressed cluster. All of out has to come out of it.
func (z *decompressor) cluster(out, data []byte, c Compression) error {
	z.input.Reset(data)
	r, err := z.reader(c)
	if err != nil {
		return err
	}
	if _, err := io.ReadFull(r, out); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("it ends early: %w", io.ErrUnexpectedEOF)
		}
		return err
	}
	return nil
}

func (z *decompressor) reader(c Compression) (io.Reader, error) {
	if c == Zstd {
		if z.zstd == nil {
			d, err := zstd.NewReader(&z.input, zstd.WithDecoderConcurrency(1),
				zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
			if err != nil {
				return nil, err
			}
			z.zstd = d
			return d, nil
		}
		return z.zstd, z.zstd.Reset(&z.input)
	}
	if z.flate == nil {
		z.flate = flate.NewReader(&z.input)
		return z.flate, nil
	}
	return z.flate, z.flate.(flate.Resetter).Reset(&z.input, nil)
}
