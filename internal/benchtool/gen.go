// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"
)

const block = 64 << 10

// generate writes a sparse raw file of size bytes, of which about data bytes
// hold what a file system's blocks look like to a compressor: text, code and
// what is compressed already. The same arguments give the same file.
func generate(path, sizeArg, dataArg string) (err error) {
	size, err := humanize.ParseBytes(sizeArg)
	if err != nil {
		return err
	}
	data, err := humanize.ParseBytes(dataArg)
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(int64(size)); err != nil {
		return err
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	words := vocabulary(rnd)
	buf := make([]byte, 16*block)
	// Runs of 1 to 16 MiB of data lie between holes, as in a used file system.
	left := int64(data)
	for off := int64(0); off < int64(size) && left > 0; {
		run := min(int64(1+rnd.IntN(16))<<20, int64(size)-off, left)
		for at := int64(0); at < run; at += int64(len(buf)) {
			part := buf[:min(int64(len(buf)), run-at)]
			for i := 0; i < len(part); i += block {
				fill(part[i:min(i+block, len(part))], rnd, words)
			}
			if _, err := f.WriteAt(part, off+at); err != nil {
				return err
			}
		}
		left -= run
		off += run
		rest := int64(size) - off
		if free := rest - left; free > 0 && left > 0 {
			gap := run * (int64(size) - int64(data)) / int64(data)
			off += min(free, gap&^(block-1))
		}
	}
	return nil
}

// vocabulary is what the text is made of.
func vocabulary(rnd *rand.Rand) [][]byte {
	words := make([][]byte, 4096)
	for i := range words {
		w := make([]byte, 2+rnd.IntN(9))
		for j := range w {
			w[j] = byte('a' + rnd.IntN(26)*rnd.IntN(26)/26)
		}
		words[i] = append(w, ' ')
	}
	return words
}

// fill makes one block: some cannot be compressed, the rest can, more or less.
func fill(p []byte, rnd *rand.Rand, words [][]byte) {
	switch kind := rnd.IntN(100); {
	case kind < 14:
		for i := 0; i+8 <= len(p); i += 8 {
			binary.LittleEndian.PutUint64(p[i:], rnd.Uint64())
		}
	case kind < 85:
		// Frequent words are frequent: the square of a uniform number.
		for i := 0; i < len(p); {
			r := rnd.Float64()
			i += copy(p[i:], words[int(r*r*r*float64(len(words)))])
		}
	default:
		// Tables: small numbers in wide fields.
		for i := 0; i+8 <= len(p); i += 8 {
			binary.LittleEndian.PutUint64(p[i:], uint64(i)<<20|uint64(rnd.IntN(1<<10)))
		}
	}
}

// thin makes a hole of each other MiB of a file.
func thin(path string) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	for off := int64(0); off < info.Size(); off += 2 << 20 {
		mode := uint32(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
		if err := unix.Fallocate(int(f.Fd()), mode, off, 1<<20); err != nil {
			return err
		}
	}
	return nil
}

// dirty prints qemu-io commands that write about total bytes in 64 KiB pieces
// all over a disk of size bytes.
func dirty(path, sizeArg, totalArg, seedArg string) error {
	size, err := humanize.ParseBytes(sizeArg)
	if err != nil {
		return err
	}
	total, err := humanize.ParseBytes(totalArg)
	if err != nil {
		return err
	}
	var seed uint64
	if _, err := fmt.Sscan(seedArg, &seed); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	rnd := rand.New(rand.NewPCG(seed, 3))
	for n := uint64(0); n < total; n += block {
		at := rnd.Uint64N(size/block) * block
		if _, err := fmt.Fprintf(w, "write -q -P %d %d %d\n", 1+rnd.IntN(255), at, block); err != nil {
			return err
		}
	}
	if _, err := io.WriteString(w, "quit\n"); err != nil {
		return err
	}
	return errors.Join(w.Flush(), f.Close())
}
