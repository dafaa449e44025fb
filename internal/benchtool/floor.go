// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

const chunk = 1 << 20

// header precedes each frame in the floor's file: guest offset, raw length,
// frame length, digest.
const header = 8 + 4 + 4 + sha256.Size

// parallel runs work on all cores and returns the first error.
func parallel(work func() error) error {
	errs := make([]error, runtime.NumCPU())
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { errs[i] = work() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// floorBackup reads the data of a raw file, hashes and compresses it in chunks
// on all cores, and writes the frames to one file.
func floorBackup(image, out string, sync_ bool) (err error) {
	f, err := os.Open(image)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // opened for reading only
	o, err := os.Create(out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	var mu sync.Mutex
	var at, end, written int64
	next := func() (off, n int64, err error) {
		mu.Lock()
		defer mu.Unlock()
		if at >= end {
			data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
			if errors.Is(err, unix.ENXIO) {
				return 0, 0, io.EOF
			}
			if err != nil {
				return 0, 0, err
			}
			at = data
			if end, err = unix.Seek(int(f.Fd()), at, unix.SEEK_HOLE); err != nil {
				return 0, 0, err
			}
		}
		off = at
		n = min(end-off, chunk-off%chunk)
		at += n
		return off, n, nil
	}
	err = parallel(func() error {
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(chunk))
		if err != nil {
			return err
		}
		raw := make([]byte, chunk)
		frame := make([]byte, 0, chunk+chunk/8)
		for {
			off, n, err := next()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			p := raw[:n]
			if _, err := f.ReadAt(p, off); err != nil {
				return err
			}
			sum := sha256.Sum256(p)
			frame = frame[:header]
			frame = enc.EncodeAll(p, frame)
			binary.LittleEndian.PutUint64(frame, uint64(off))
			binary.LittleEndian.PutUint32(frame[8:], uint32(n))
			binary.LittleEndian.PutUint32(frame[12:], uint32(len(frame)-header))
			copy(frame[16:], sum[:])
			mu.Lock()
			to := written
			written += int64(len(frame))
			mu.Unlock()
			if _, err := o.WriteAt(frame, to); err != nil {
				return err
			}
		}
	})
	if err == nil && sync_ {
		err = o.Sync()
	}
	return err
}

// floorRestore reads what floorBackup wrote, decodes and proves the chunks on
// all cores, and writes them sparsely to a file that is synced.
func floorRestore(in, out string) (err error) {
	f, err := os.Open(in)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // opened for reading only
	o, err := os.Create(out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	var mu sync.Mutex
	var at int64
	var zero [4096]byte
	err = parallel(func() error {
		dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return err
		}
		defer dec.Close()
		var head [header]byte
		frame := make([]byte, 2*chunk)
		raw := make([]byte, 0, chunk)
		for {
			mu.Lock()
			_, err := f.ReadAt(head[:], at)
			from := at + header
			n := int64(binary.LittleEndian.Uint32(head[12:]))
			at = from + n
			mu.Unlock()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			if _, err := f.ReadAt(frame[:n], from); err != nil && err != io.EOF {
				return err
			}
			if raw, err = dec.DecodeAll(frame[:n], raw[:0]); err != nil {
				return err
			}
			if sum := sha256.Sum256(raw); !bytes.Equal(sum[:], head[16:]) {
				return fmt.Errorf("chunk at %d is damaged", from)
			}
			off := int64(binary.LittleEndian.Uint64(head[:]))
			for i := 0; i < len(raw); {
				j := i
				for j < len(raw) && bytes.Equal(raw[j:min(j+4096, len(raw))], zero[:min(4096, len(raw)-j)]) {
					j += 4096
				}
				i = min(j, len(raw))
				for j < len(raw) && !bytes.Equal(raw[j:min(j+4096, len(raw))], zero[:min(4096, len(raw)-j)]) {
					j += 4096
				}
				j = min(j, len(raw))
				if i < j {
					if _, err := o.WriteAt(raw[i:j], off+int64(i)); err != nil {
						return err
					}
				}
				i = j
			}
		}
	})
	if err != nil {
		return err
	}
	return o.Sync()
}
