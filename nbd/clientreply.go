// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"slices"
)

// maxRanges bounds into how many ranges that do not touch a server may cut one read.
const maxRanges = 1024

// maxErrorChunk bounds an error's chunk, bytes.
const maxErrorChunk = 64 << 10

// call is a request that waits for its reply. While it is pending, all but done
// belongs to the receiver.
type call struct {
	r    request
	done chan struct{}
	err  error

	buf    []byte     // of a read
	have   [][2]int64 // what of a read has come: sorted, disjoint ranges that do not touch
	status map[uint32][]byte
}

// receive takes replies until the connection ends, and then fails all calls.
func (c *Client) receive() {
	defer close(c.ended)
	err := c.replies()
	if isEOF(err) {
		err = fmt.Errorf("nbd: the server has closed the connection: %w", io.ErrUnexpectedEOF)
	}
	c.fail(err)
	c.mu.Lock()
	defer c.mu.Unlock()
	for cookie, k := range c.pending {
		delete(c.pending, cookie)
		k.err = c.err
		close(k.done)
	}
}

func (c *Client) replies() error {
	for {
		var head [chunkHeadLen]byte
		if _, err := io.ReadFull(c.in, head[:simpleReplyLen]); err != nil {
			return err
		}
		var err error
		switch magic := binary.BigEndian.Uint32(head[:]); {
		case magic == magicSimple:
			err = c.simple(binary.BigEndian.Uint32(head[4:]), binary.BigEndian.Uint64(head[8:]))
		case magic == magicStructured && c.structured:
			if _, err := io.ReadFull(c.in, head[simpleReplyLen:]); err != nil {
				return unexpected(err)
			}
			err = c.chunk(binary.BigEndian.Uint16(head[4:]), binary.BigEndian.Uint16(head[6:]),
				binary.BigEndian.Uint64(head[8:]), binary.BigEndian.Uint32(head[16:]))
		default:
			err = serverBreach("a reply begins with %#x", magic)
		}
		if err != nil {
			return unexpected(err)
		}
	}
}

// call finds what a reply belongs to.
func (c *Client) call(cookie uint64) (*call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.pending[cookie]
	if k == nil {
		return nil, serverBreach("a reply to a request that does not wait for one")
	}
	return k, nil
}

// finish ends a call.
func (c *Client) finish(k *call) {
	c.mu.Lock()
	delete(c.pending, k.r.cookie)
	c.mu.Unlock()
	close(k.done)
}

func (c *Client) simple(errno uint32, cookie uint64) error {
	k, err := c.call(cookie)
	if err != nil {
		return err
	}
	switch {
	case errno != 0:
		k.err = &ServerError{Code: errno}
	case c.structured:
		return serverBreach("a simple reply to a request whose reply has content")
	default:
		if _, err := io.ReadFull(c.in, k.buf); err != nil {
			return unexpected(err)
		}
	}
	c.finish(k)
	return nil
}

// chunk takes one chunk of a structured reply.
func (c *Client) chunk(flags, kind uint16, cookie uint64, n uint32) error {
	k, err := c.call(cookie)
	if err != nil {
		return err
	}
	switch {
	case kind == replyNone && n == 0 && flags&replyFlagDone != 0:
	case kind == replyOffsetData && n > 8 && k.r.cmd == cmdRead:
		err = c.data(k, int64(n)-8)
	case kind == replyOffsetHole && n == 12 && k.r.cmd == cmdRead:
		err = c.hole(k)
	case kind == replyBlockStatus && k.r.cmd == cmdBlockStatus:
		err = c.blockStatus(k, n)
	case kind&(1<<15) != 0:
		err = c.errorChunk(k, n)
	default:
		err = serverBreach("a chunk of type %d and %d bytes in reply to command %d", kind, n, k.r.cmd)
	}
	if err != nil || flags&replyFlagDone == 0 {
		return err
	}
	if k.err == nil {
		if err := c.complete(k); err != nil {
			return err
		}
	}
	c.finish(k)
	return nil
}

// complete judges a reply that claims success.
func (c *Client) complete(k *call) error {
	switch k.r.cmd {
	case cmdRead:
		if len(k.have) != 1 || k.have[0] != [2]int64{k.r.offset, k.r.end()} {
			return serverBreach("a read of bytes %d to %d that is not complete", k.r.offset, k.r.end()-1)
		}
	case cmdBlockStatus:
		for _, m := range c.contexts {
			if k.status[m.id] == nil {
				return serverBreach("a block status without the context %.80q", m.name)
			}
		}
	}
	return nil
}

// data reads n bytes of a read into their place.
func (c *Client) data(k *call, n int64) error {
	var b [8]byte
	if _, err := io.ReadFull(c.in, b[:]); err != nil {
		return err
	}
	at, err := k.claim(binary.BigEndian.Uint64(b[:]), n)
	if err != nil {
		return err
	}
	_, err = io.ReadFull(c.in, k.buf[at:at+n])
	return err
}

func (c *Client) hole(k *call) error {
	var b [12]byte
	if _, err := io.ReadFull(c.in, b[:]); err != nil {
		return err
	}
	n := int64(binary.BigEndian.Uint32(b[8:]))
	at, err := k.claim(binary.BigEndian.Uint64(b[:]), n)
	if err != nil {
		return err
	}
	clear(k.buf[at : at+n])
	return nil
}

// claim takes down that n bytes at off have come, which must not have come before,
// and returns their place in the buffer.
func (k *call) claim(off uint64, n int64) (int64, error) {
	start, end := uint64(k.r.offset), uint64(k.r.end())
	if n <= 0 || off < start || off >= end || uint64(n) > end-off {
		return 0, serverBreach("%d bytes at %d in reply to a read of bytes %d to %d", n, off, start, end-1)
	}
	r := [2]int64{int64(off), int64(off) + n}
	i, _ := slices.BinarySearchFunc(k.have, r[0], func(h [2]int64, at int64) int {
		if h[1] < at {
			return -1
		}
		return 1
	})
	// have[i] is the first that ends at r's start or later.
	before := i < len(k.have) && k.have[i][1] == r[0]
	j := i
	if before {
		j++
	}
	if j < len(k.have) && k.have[j][0] < r[1] {
		return 0, serverBreach("bytes %d to %d came twice", max(k.have[j][0], r[0]), min(k.have[j][1], r[1])-1)
	}
	after := j < len(k.have) && k.have[j][0] == r[1]
	switch {
	case before && after:
		k.have[i][1] = k.have[j][1]
		k.have = slices.Delete(k.have, j, j+1)
	case before:
		k.have[i][1] = r[1]
	case after:
		k.have[j][0] = r[0]
	case len(k.have) == maxRanges:
		return 0, serverBreach("a read cut into too many parts")
	default:
		k.have = slices.Insert(k.have, j, r)
	}
	return r[0] - k.r.offset, nil
}

// errorChunk reads an error; the first of a reply stays.
func (c *Client) errorChunk(k *call, n uint32) error {
	if n < 6 || n > maxErrorChunk {
		return serverBreach("an error of %d bytes", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(c.in, b); err != nil {
		return err
	}
	text := int(binary.BigEndian.Uint16(b[4:]))
	if text > len(b)-6 {
		return serverBreach("an error whose text is longer than itself")
	}
	if k.err == nil {
		k.err = &ServerError{Code: binary.BigEndian.Uint32(b), Text: string(b[6 : 6+text])}
	}
	return nil
}

// blockStatus reads the descriptors of one context.
func (c *Client) blockStatus(k *call, n uint32) error {
	if n < 12 || n%8 != 4 || n > 4+8*maxStatusExtents {
		return serverBreach("a block status of %d bytes", n)
	}
	var b [4]byte
	if _, err := io.ReadFull(c.in, b[:]); err != nil {
		return err
	}
	id := binary.BigEndian.Uint32(b[:])
	if !slices.ContainsFunc(c.contexts, func(m clientContext) bool { return m.id == id }) || k.status[id] != nil {
		return serverBreach("a block status of a context that was not selected, or twice")
	}
	if k.status == nil {
		k.status = make(map[uint32][]byte)
	}
	// Memory is taken as the bytes come.
	var list []byte
	for left := int(n) - 4; left > 0; {
		part := min(left, 64<<10)
		list = slices.Grow(list, part)[:len(list)+part]
		if _, err := io.ReadFull(c.in, list[len(list)-part:]); err != nil {
			return err
		}
		left -= part
	}
	k.status[id] = list
	return nil
}

// statusRequest is how much one block status asks for, bytes.
const statusRequest = 1 << 31

// Extents yields what a context that the server has selected says of [start, end):
// extents that cover it in order without gaps; neighbours have different flags. An
// error comes last. See [Client.ReadAt] for ctx.
func (c *Client) Extents(ctx context.Context, name string, start, end int64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		fail := func(err error) { yield(Extent{}, fmt.Errorf("nbd: block status %s: %w", name, err)) }
		i := slices.IndexFunc(c.contexts, func(m clientContext) bool { return m.name == name })
		if i < 0 {
			fail(fmt.Errorf("the server has no such context of this export"))
			return
		}
		if start < 0 || end > c.size || start > end {
			fail(fmt.Errorf("bytes %d to %d of an export of %d", start, end-1, c.size))
			return
		}
		var last Extent
		for pos := start; pos < end; {
			from := pos - pos%c.minBlock
			to := min(from+statusRequest, c.size, end+(c.minBlock-end%c.minBlock)%c.minBlock)
			k := &call{r: request{cmd: cmdBlockStatus, offset: from, length: to - from}}
			if err := c.do(ctx, k); err != nil {
				fail(err)
				return
			}
			at := from
			for list := k.status[c.contexts[i].id]; len(list) > 0; list = list[8:] {
				n := int64(binary.BigEndian.Uint32(list))
				if n == 0 || at >= to {
					c.fail(serverBreach("a block status of no bytes, or beyond what was asked for"))
					fail(c.failure())
					return
				}
				e := Extent{Start: max(at, pos), End: min(at+n, end), Flags: binary.BigEndian.Uint32(list[4:])}
				at += n
				switch {
				case e.Start >= e.End:
				case last.End == e.Start && last.Flags == e.Flags && last.Start < last.End:
					last.End = e.End
				default:
					if last.Start < last.End && !yield(last, nil) {
						return
					}
					last = e
				}
			}
			if at <= pos {
				c.fail(serverBreach("a block status that says nothing of what was asked for"))
				fail(c.failure())
				return
			}
			pos = min(at, end)
		}
		if last.Start < last.End {
			yield(last, nil)
		}
	}
}
