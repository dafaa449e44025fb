// SPDX-License-Identifier: Apache-2.0

package crypt

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"filippo.io/age"
)

// FuzzFile: a file that is opened by its ends, read in ranges, read as a stream, or opened whole
// gives the same content in each of these ways, or is damaged.
func FuzzFile(f *testing.F) {
	k, err := New(fixed(f))
	if err != nil {
		f.Fatal(err)
	}
	for _, n := range []int{0, 1, 1000, blockSize, blockSize + 1, 3*blockSize + 5} {
		file, err := k.Append(nil, Metadata, bytes.Repeat([]byte{7}, n))
		if err != nil {
			f.Fatal(err)
		}
		if content, err := inWays(k, file, 10, 20); err != nil || len(content) != n {
			f.Fatalf("a seed is not valid: %v", err)
		}
		f.Add(file, uint32(10), uint32(20))
	}
	f.Fuzz(func(t *testing.T, file []byte, off, n uint32) {
		if len(file) > 1<<20 {
			return
		}
		if _, err := inWays(k, file, int64(off), int64(n)); errors.Is(err, errDiffer) {
			t.Error(err)
		}
	})
}

// fixed is a generation that is the same in each process of a fuzzer.
func fixed(t testing.TB) Generation {
	id, err := age.ParseX25519Identity("AGE-SECRET-KEY-19CZEG3875Y4NCWRDCR0F9QULQHGTAVUVA8P73XX3FW4ECNH7GYHS8FF6WN")
	if err != nil {
		t.Fatal(err)
	}
	p := Pair{Recipient: id.Recipient(), Identity: id}
	return Generation{Number: 1, Data: p, Metadata: p}
}

var errDiffer = errors.New("what is read depends on how")

// inWays reads a file in each way, and n bytes at off.
func inWays(k *Keys, file []byte, off, n int64) ([]byte, error) {
	whole, err := k.Open(nil, Metadata, file)
	r, rerr := k.Reader(Metadata, bytes.NewReader(file))
	var streamed []byte
	if rerr == nil {
		streamed, rerr = io.ReadAll(r)
	}
	if (err == nil) != (rerr == nil) || err == nil && !bytes.Equal(whole, streamed) {
		return nil, errors.Join(errDiffer, err, rerr)
	}
	start := file[:min(int64(len(file)), StartLength(0))]
	tail := file[max(0, int64(len(file))-TailLength(0)):]
	opened, oerr := k.OpenFile(Metadata, Ends{Length: int64(len(file)), Start: start, Tail: tail}, func(_ context.Context, off, n int64) ([]byte, error) {
		if off < 0 || n <= 0 || off+n > int64(len(file)) {
			return nil, errors.Join(errDiffer, errors.New("bytes beyond the file are asked for"))
		}
		return file[off:][:n], nil
	})
	if oerr != nil {
		if err == nil {
			return nil, errors.Join(errDiffer, oerr)
		}
		return nil, oerr
	}
	if err == nil && opened.Size() != int64(len(whole)) {
		return nil, errDiffer
	}
	off = min(off, opened.Size())
	n = min(n, opened.Size()-off)
	part, _, perr := opened.Read(context.Background(), off, n)
	if err == nil && (perr != nil || !bytes.Equal(part, whole[off:][:n])) {
		return nil, errors.Join(errDiffer, perr)
	}
	return whole, errors.Join(err, perr)
}
