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
	"net"
	"strings"
)

// What a client may send while it negotiates.
const (
	maxOptions    = 256       // options
	maxOptionData = 256 << 10 // bytes of one; a longer one is passed over and refused
	maxOptionSkip = 4 << 20   // bytes that are passed over; what is longer ends the connection
	readBuffer    = 64 << 10
)

// handshake is the negotiation with one client.
type handshake struct {
	s          *Server
	nc         net.Conn
	in         *bufio.Reader
	tls        bool
	noZeroes   bool
	structured bool
	metaFor    *Export // whose contexts are selected
	contexts   []Context
}

// option is what a client asks for.
type option struct {
	id   uint32
	data []byte
}

// run negotiates. The connection is nil when the client has left.
func (h *handshake) run(ctx context.Context) (*conn, error) {
	h.in = bufio.NewReaderSize(h.nc, readBuffer)
	hello := binary.BigEndian.AppendUint64(nil, magicInit)
	hello = binary.BigEndian.AppendUint64(hello, magicOption)
	hello = binary.BigEndian.AppendUint16(hello, flagFixedNewstyle|flagNoZeroes)
	if _, err := h.nc.Write(hello); err != nil {
		return nil, err
	}
	var b [4]byte
	if _, err := io.ReadFull(h.in, b[:]); err != nil {
		return nil, left(err)
	}
	flags := binary.BigEndian.Uint32(b[:])
	if flags&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return nil, breach("unknown handshake flags %#x", flags)
	}
	h.noZeroes = flags&flagNoZeroes != 0
	for range maxOptions {
		o, err := h.option()
		if err != nil {
			return nil, left(err)
		}
		if o == nil {
			continue
		}
		if h.s.o.TLS != nil && !h.tls {
			if err := h.beforeTLS(ctx, o); err != nil {
				return nil, left(err)
			}
			continue
		}
		c, err := h.answer(o)
		if c != nil || err != nil {
			return c, left(err)
		}
	}
	return nil, breach("more than %d options", maxOptions)
}

// errLeft says that the client has left, as it may.
var errLeft = errors.New("the client has left")

// left is err, or nil if it says no more than that the client has left.
func left(err error) error {
	if errors.Is(err, errLeft) || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// option reads the next option. One that is too long is refused here: nil.
func (h *handshake) option() (*option, error) {
	var head [optionHeadLen]byte
	if _, err := io.ReadFull(h.in, head[:]); err != nil {
		return nil, err
	}
	if binary.BigEndian.Uint64(head[:]) != magicOption {
		return nil, breach("an option does not begin with its magic number")
	}
	o := &option{id: binary.BigEndian.Uint32(head[8:])}
	n := binary.BigEndian.Uint32(head[12:])
	if n > maxOptionSkip || n > maxString && o.id == optExportName {
		return nil, breach("an option of %d bytes", n)
	}
	if n > maxOptionData {
		if _, err := h.in.Discard(int(n)); err != nil {
			return nil, err
		}
		return nil, h.refuse(o, repErrTooBig, "the option is too long")
	}
	o.data = make([]byte, n)
	if _, err := io.ReadFull(h.in, o.data); err != nil {
		return nil, err
	}
	return o, nil
}

func (h *handshake) reply(o *option, kind uint32, data []byte) error {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, optReplyHeadLen+len(data)), magicOptReply)
	b = binary.BigEndian.AppendUint32(b, o.id)
	b = binary.BigEndian.AppendUint32(b, kind)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	_, err := h.nc.Write(append(b, data...))
	return err
}

func (h *handshake) ack(o *option) error { return h.reply(o, repAck, nil) }

func (h *handshake) refuse(o *option, kind uint32, why string) error {
	return h.reply(o, kind, []byte(why))
}

func (h *handshake) abort(o *option) error {
	_ = h.ack(o) // the client need not wait for it
	return errLeft
}

// beforeTLS answers an option of a client that must begin TLS first.
func (h *handshake) beforeTLS(ctx context.Context, o *option) error {
	switch o.id {
	case optAbort:
		return h.abort(o)
	case optExportName:
		return errors.New("refused: the client has not begun TLS")
	case optStartTLS:
		if len(o.data) > 0 {
			return h.refuse(o, repErrInvalid, "NBD_OPT_STARTTLS has no data")
		}
		if err := h.ack(o); err != nil {
			return err
		}
		// What came in the clear behind the option must not count as encrypted.
		if h.in.Buffered() > 0 {
			return breach("data in the clear after NBD_OPT_STARTTLS")
		}
		t := tls.Server(h.nc, h.s.o.TLS)
		if err := t.HandshakeContext(ctx); err != nil {
			return fmt.Errorf("TLS: %w", err)
		}
		h.nc, h.tls = t, true
		h.in = bufio.NewReaderSize(t, readBuffer)
		return nil
	}
	return h.refuse(o, repErrTLSReqd, "this server wants TLS: begin with NBD_OPT_STARTTLS")
}

// answer answers an option. A connection means that negotiation is over.
func (h *handshake) answer(o *option) (*conn, error) {
	switch o.id {
	case optExportName:
		return h.exportName(o)
	case optAbort:
		return nil, h.abort(o)
	case optList:
		return nil, h.list(o)
	case optStartTLS:
		if h.tls {
			return nil, h.refuse(o, repErrInvalid, "TLS has begun already")
		}
		return nil, h.refuse(o, repErrPolicy, "this server has no TLS")
	case optInfo, optGo:
		return h.info(o)
	case optStructuredReply:
		if len(o.data) > 0 {
			return nil, h.refuse(o, repErrInvalid, "NBD_OPT_STRUCTURED_REPLY has no data")
		}
		h.structured = true
		return nil, h.ack(o)
	case optListMetaContext, optSetMetaContext:
		return nil, h.metaContext(o)
	}
	return nil, h.refuse(o, repErrUnsup, "unknown option")
}

func (h *handshake) exportName(o *option) (*conn, error) {
	e := h.s.export(string(o.data))
	if e == nil {
		return nil, fmt.Errorf("there is no export %.80q", o.data)
	}
	c := h.transmission(e)
	b := binary.BigEndian.AppendUint64(nil, uint64(e.Size))
	b = binary.BigEndian.AppendUint16(b, c.flags())
	if !h.noZeroes {
		b = append(b, make([]byte, exportNamePadding)...)
	}
	if _, err := h.nc.Write(b); err != nil {
		return nil, err
	}
	return c, nil
}

func (h *handshake) list(o *option) error {
	if len(o.data) > 0 {
		return h.refuse(o, repErrInvalid, "NBD_OPT_LIST has no data")
	}
	for _, e := range h.s.exports {
		b := binary.BigEndian.AppendUint32(nil, uint32(len(e.Name)))
		b = append(b, e.Name...)
		if err := h.reply(o, repServer, append(b, e.Description...)); err != nil {
			return err
		}
	}
	return h.ack(o)
}

// info answers NBD_OPT_INFO and NBD_OPT_GO.
func (h *handshake) info(o *option) (*conn, error) {
	r := optionReader{data: o.data}
	name := r.string()
	wanted := make(map[uint16]bool)
	for range r.uint16() {
		if r.bad {
			break
		}
		wanted[r.uint16()] = true
	}
	if !r.done() {
		return nil, h.refuse(o, repErrInvalid, "the lengths in the option contradict each other")
	}
	e := h.s.export(name)
	if e == nil {
		return nil, h.refuse(o, repErrUnknown, "there is no such export")
	}
	c := h.transmission(e)
	b := binary.BigEndian.AppendUint16(nil, infoExport)
	b = binary.BigEndian.AppendUint64(b, uint64(e.Size))
	infos := [][]byte{binary.BigEndian.AppendUint16(b, c.flags())}
	if wanted[infoName] {
		infos = append(infos, append([]byte{0, infoName}, e.Name...))
	}
	if wanted[infoDescription] && e.Description != "" {
		infos = append(infos, append([]byte{0, infoDescription}, e.Description...))
	}
	if wanted[infoBlockSize] {
		preferred := e.BlockSize
		if preferred == 0 {
			preferred = 64 << 10
		}
		b := binary.BigEndian.AppendUint16(nil, infoBlockSize)
		b = binary.BigEndian.AppendUint32(b, 1)
		b = binary.BigEndian.AppendUint32(b, uint32(preferred))
		infos = append(infos, binary.BigEndian.AppendUint32(b, maxPayload))
	}
	for _, b := range infos {
		if err := h.reply(o, repInfo, b); err != nil {
			return nil, err
		}
	}
	if err := h.ack(o); err != nil || o.id == optInfo {
		return nil, err
	}
	return c, nil
}

// transmission is the connection that negotiation has led to.
func (h *handshake) transmission(e *Export) *conn {
	c := newConn(h.s, h.nc, h.in, e)
	c.structured = h.structured
	if h.metaFor == e {
		c.contexts = h.contexts
	}
	return c
}

// metaContext answers NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
func (h *handshake) metaContext(o *option) error {
	set := o.id == optSetMetaContext
	if set {
		h.metaFor, h.contexts = nil, nil
	}
	if !h.structured {
		return h.refuse(o, repErrInvalid, "structured replies must be negotiated first")
	}
	r := optionReader{data: o.data}
	name := r.string()
	n := r.uint32()
	var queries []string // as many as there are bytes for
	for i := uint32(0); i < n && !r.bad; i++ {
		queries = append(queries, r.string())
	}
	if !r.done() {
		return h.refuse(o, repErrInvalid, "the lengths in the option contradict each other")
	}
	e := h.s.export(name)
	if e == nil {
		return h.refuse(o, repErrUnknown, "there is no such export")
	}
	var found []Context
	for _, c := range e.Contexts {
		if matches(c.Name, queries, !set) {
			found = append(found, c)
		}
	}
	for i, c := range found {
		id := uint32(0)
		if set {
			id = contextID(i)
		}
		if err := h.reply(o, repMetaContext, append(binary.BigEndian.AppendUint32(nil, id), c.Name...)); err != nil {
			return err
		}
	}
	if set {
		h.metaFor, h.contexts = e, found
	}
	return h.ack(o)
}

// contextID is the id of the i-th selected context.
func contextID(i int) uint32 { return uint32(i) + 1 }

// matches reports whether any query asks for a context. When it lists, no query asks
// for all, and one with an empty leaf for all that begin like it; QEMU has the
// wildcard "qemu:dirty-bitmap:" as well.
func matches(name string, queries []string, list bool) bool {
	if list && len(queries) == 0 {
		return true
	}
	for _, q := range queries {
		if q == name || list && strings.HasSuffix(q, ":") && strings.HasPrefix(name, q) {
			return true
		}
	}
	return false
}

// optionReader takes an option's data apart.
type optionReader struct {
	data []byte
	bad  bool
}

func (r *optionReader) take(n uint32) []byte {
	if r.bad || uint64(n) > uint64(len(r.data)) {
		r.bad = true
		return nil
	}
	b := r.data[:n]
	r.data = r.data[n:]
	return b
}

func (r *optionReader) uint16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *optionReader) uint32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// string reads a string with its length before it.
func (r *optionReader) string() string {
	n := r.uint32()
	if n > maxString {
		r.bad = true
	}
	return string(r.take(n))
}

// done reports whether the data were valid and have been read to their end.
func (r *optionReader) done() bool { return !r.bad && len(r.data) == 0 }
