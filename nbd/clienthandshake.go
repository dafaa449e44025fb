// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
)

// maxOptReply bounds a reply to an option, bytes; maxOptReplies how many one option
// may have.
const (
	maxOptReply   = 64 << 10
	maxOptReplies = 4096
)

func (c *Client) negotiate(ctx context.Context, o ClientOptions) error {
	if len(o.Export) > maxString {
		return fmt.Errorf("the name of an export has at most %d bytes", maxString)
	}
	var hello [18]byte
	if _, err := io.ReadFull(c.in, hello[:]); err != nil {
		return err
	}
	if binary.BigEndian.Uint64(hello[:]) != magicInit || binary.BigEndian.Uint64(hello[8:]) != magicOption {
		return errors.New("this is no NBD server of the newstyle protocol")
	}
	flags := binary.BigEndian.Uint16(hello[16:])
	if flags&flagFixedNewstyle == 0 {
		return errors.New("the server does not speak the fixed newstyle protocol")
	}
	flags &= flagFixedNewstyle | flagNoZeroes
	if _, err := c.nc.Write(binary.BigEndian.AppendUint32(nil, uint32(flags))); err != nil {
		return err
	}
	if o.TLS != nil {
		if err := c.startTLS(ctx, o.TLS); err != nil {
			return err
		}
	}
	err := c.option(optStructuredReply, nil, nil)
	if err != nil && !refusedBy(err, repErrUnsup) {
		return err
	}
	c.structured = err == nil
	if c.structured && len(o.Contexts) > 0 {
		if err := c.selectContexts(o); err != nil {
			return err
		}
	}
	data := binary.BigEndian.AppendUint32(nil, uint32(len(o.Export)))
	data = append(data, o.Export...)
	data = append(data, 0, 1, 0, infoBlockSize)
	known := false
	err = c.option(optGo, data, func(kind uint32, data []byte) error {
		if kind != repInfo {
			return serverBreach("a reply of type %d to NBD_OPT_GO", kind)
		}
		return c.info(data, &known)
	})
	if refusedBy(err, repErrUnsup) {
		return c.exportName(o.Export, flags&flagNoZeroes == 0)
	}
	if err == nil && !known {
		err = serverBreach("no information about the export")
	}
	return err
}

func refusedBy(err error, code uint32) bool {
	var e *ServerError
	return errors.As(err, &e) && e.Code == code
}

func (c *Client) startTLS(ctx context.Context, config *tls.Config) error {
	if err := c.option(optStartTLS, nil, nil); err != nil {
		return fmt.Errorf("begin TLS: %w", err)
	}
	if c.in.Buffered() > 0 {
		return serverBreach("data in the clear after NBD_OPT_STARTTLS")
	}
	t := tls.Client(c.nc, config)
	if err := t.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	c.nc = t
	c.in = bufio.NewReaderSize(t, readBuffer)
	return nil
}

func (c *Client) writeOption(id uint32, data []byte) error {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, optionHeadLen+len(data)), magicOption)
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	_, err := c.nc.Write(append(b, data...))
	return err
}

// option sends an option and calls fn for each reply up to the last, which is an
// acknowledgement or the error returned.
func (c *Client) option(id uint32, data []byte, fn func(kind uint32, data []byte) error) error {
	if err := c.writeOption(id, data); err != nil {
		return err
	}
	for range maxOptReplies {
		var head [optReplyHeadLen]byte
		if _, err := io.ReadFull(c.in, head[:]); err != nil {
			return err
		}
		kind, n := binary.BigEndian.Uint32(head[12:]), binary.BigEndian.Uint32(head[16:])
		if binary.BigEndian.Uint64(head[:]) != magicOptReply || binary.BigEndian.Uint32(head[8:]) != id {
			return serverBreach("a reply that does not belong to option %d", id)
		}
		if n > maxOptReply {
			return serverBreach("a reply of %d bytes to option %d", n, id)
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(c.in, body); err != nil {
			return err
		}
		switch {
		case kind&repError != 0:
			return &ServerError{Code: kind, Text: string(body)}
		case kind == repAck:
			return nil
		case fn == nil:
			return serverBreach("a reply of type %d to option %d", kind, id)
		}
		if err := fn(kind, body); err != nil {
			return err
		}
	}
	return serverBreach("too many replies to option %d", id)
}

func (c *Client) selectContexts(o ClientOptions) error {
	data := binary.BigEndian.AppendUint32(nil, uint32(len(o.Export)))
	data = append(data, o.Export...)
	data = binary.BigEndian.AppendUint32(data, uint32(len(o.Contexts)))
	for _, name := range o.Contexts {
		data = binary.BigEndian.AppendUint32(data, uint32(len(name)))
		data = append(data, name...)
	}
	err := c.option(optSetMetaContext, data, func(kind uint32, data []byte) error {
		if kind != repMetaContext || len(data) < 4 {
			return serverBreach("a reply of type %d and %d bytes to NBD_OPT_SET_META_CONTEXT", kind, len(data))
		}
		m := clientContext{id: binary.BigEndian.Uint32(data), name: string(data[4:])}
		if !slices.Contains(o.Contexts, m.name) {
			return serverBreach("the context %.80q, which nobody has asked for", m.name)
		}
		for _, other := range c.contexts {
			if other.id == m.id || other.name == m.name {
				return serverBreach("the context %.80q twice", m.name)
			}
		}
		c.contexts = append(c.contexts, m)
		return nil
	})
	if refusedBy(err, repErrUnsup) {
		c.contexts = nil
		return nil
	}
	return err
}

// info takes in one piece of information about the export.
func (c *Client) info(data []byte, known *bool) error {
	if len(data) < 2 {
		return serverBreach("information of %d bytes", len(data))
	}
	kind := binary.BigEndian.Uint16(data)
	data = data[2:]
	switch {
	case kind == infoExport && len(data) == 10:
		*known = true
		return c.export(data)
	case kind == infoBlockSize && len(data) == 12:
		smallest, largest := binary.BigEndian.Uint32(data), binary.BigEndian.Uint32(data[8:])
		if smallest == 0 || smallest&(smallest-1) != 0 || smallest > 64<<10 || largest < smallest {
			return serverBreach("blocks of %d to %d bytes", smallest, largest)
		}
		c.minBlock = int64(smallest)
		c.maxRequest = max(c.minBlock, min(clientRequest, int64(largest)/c.minBlock*c.minBlock))
	case kind == infoExport || kind == infoBlockSize:
		return serverBreach("information %d of %d bytes", kind, len(data))
	}
	return nil
}

func (c *Client) export(data []byte) error {
	size := binary.BigEndian.Uint64(data)
	if size > math.MaxInt64 {
		return serverBreach("an export of %d bytes", size)
	}
	c.size, c.flags = int64(size), binary.BigEndian.Uint16(data[8:])
	if c.flags&flagHasFlags == 0 {
		return serverBreach("no transmission flags")
	}
	return nil
}

// exportName ends the negotiation with a server that does not know NBD_OPT_GO.
func (c *Client) exportName(name string, zeroes bool) error {
	if err := c.writeOption(optExportName, []byte(name)); err != nil {
		return err
	}
	n := 10
	if zeroes {
		n += exportNamePadding
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(c.in, b); err != nil {
		return fmt.Errorf("the server does not give the export %.80q: %w", name, err)
	}
	return c.export(b[:10])
}
