// SPDX-License-Identifier: Apache-2.0

package objstore

import (
	"io"
	"sort"
)

// Body is the content of an object to be stored. It can be read more than
// once, so that a failed request can be repeated. *bytes.Reader,
// *strings.Reader and *io.SectionReader are bodies.
type Body interface {
	io.ReaderAt
	Size() int64 // bytes
}

// Concat returns a body that holds the parts one after the other.
func Concat(parts ...Body) Body {
	c := &concat{parts: parts, ends: make([]int64, len(parts))}
	for i, p := range parts {
		c.size += p.Size()
		c.ends[i] = c.size
	}
	return c
}

type concat struct {
	parts []Body
	ends  []int64 // where each part ends in the whole
	size  int64
}

func (c *concat) Size() int64 { return c.size }

func (c *concat) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n := 0
	i := sort.Search(len(c.ends), func(i int) bool { return c.ends[i] > off })
	for ; n < len(p) && i < len(c.parts); i++ {
		end := c.ends[i]
		start := end - c.parts[i].Size()
		want := min(int64(len(p)-n), end-off)
		got, err := c.parts[i].ReadAt(p[n:n+int(want)], off-start)
		n += got
		off += int64(got)
		if int64(got) < want {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return n, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
