// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Extent is a part of an image as QEMU finds it. Numbers are bytes.
type Extent struct {
	Start      int64  `json:"start"`
	Length     int64  `json:"length"` // at least 1
	Depth      int    `json:"depth"`  // 0: in the image itself; 1: in its backing file, …
	Data       bool   `json:"data"`   // it is allocated, and not as zeros
	Zero       bool   `json:"zero"`   // it reads as zeros
	Compressed bool   `json:"compressed"`
	Offset     *int64 `json:"offset"` // in the file, of plain data; nil: it cannot be told
}

// maxExtent bounds the text of an extent, bytes.
const maxExtent = 64 << 10

// Map has qemu-img tell of what the qcow2 image at path is made. fn gets its parts, in order
// and without gaps, from 0 on; whether they reach to the end is for the caller to see. What fn
// returns ends it. It ends when ctx does.
func (q Img) Map(ctx context.Context, path string, fn func(Extent) error) error {
	p, err := q.reader(path, "map", "--output=json", "--", imageFile)
	if err != nil {
		return err
	}
	var read error
	run, err := p.stream(ctx, func(out io.Reader) error {
		read = readExtents(out, fn)
		return read
	})
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err == nil && run.status > 0: // what it has told then was cut short
		return run.failure("map "+path, path)
	}
	return errors.Join(err, read)
}

// readExtents reads what qemu-img map writes.
func readExtents(out io.Reader, fn func(Extent) error) error {
	limited := &io.LimitedReader{R: out, N: maxExtent}
	in := json.NewDecoder(limited)
	not := func(err error) error { return fmt.Errorf("qemu-img's map cannot be understood: %w", err) }
	if t, err := in.Token(); err != nil || t != json.Delim('[') {
		return not(errors.Join(err, fmt.Errorf("it begins with %.20q", fmt.Sprint(t))))
	}
	for at := int64(0); in.More(); {
		limited.N = maxExtent
		var e Extent
		if err := in.Decode(&e); err != nil {
			return not(err)
		}
		if e.Start != at || e.Length <= 0 || e.Start+e.Length < e.Start || e.Depth < 0 || e.Offset != nil && *e.Offset < 0 {
			return not(fmt.Errorf("a part of %d bytes at %d follows what ends at %d", e.Length, e.Start, at))
		}
		at += e.Length
		if err := fn(e); err != nil {
			return err
		}
	}
	limited.N = maxExtent
	if t, err := in.Token(); err != nil || t != json.Delim(']') {
		return not(errors.Join(err, errors.New("it does not end")))
	}
	return nil
}
