// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"testing"
	"time"
)

// scripted is a connection whose other side has said all that it will ever say.
type scripted struct {
	in  *bytes.Reader
	out func([]byte)
}

func (s *scripted) Read(p []byte) (int, error) { return s.in.Read(p) }
func (s *scripted) Write(p []byte) (int, error) {
	if s.out != nil {
		s.out(p)
	}
	return len(p), nil
}
func (*scripted) Close() error                     { return nil }
func (*scripted) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (*scripted) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (*scripted) SetDeadline(time.Time) error      { return nil }
func (*scripted) SetReadDeadline(time.Time) error  { return nil }
func (*scripted) SetWriteDeadline(time.Time) error { return nil }

func str(s string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...)
}

func clientOption(id uint32, data []byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, magicOption)
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

func clientRequestBytes(cmd, flags uint16, cookie uint64, off int64, n int64) []byte {
	return requestHead(&request{cmd: cmd, flags: flags, cookie: cookie, length: n}, off)
}

// hello is a whole negotiation of a client, up to the transmission phase.
func hello() []byte {
	b := []byte{0, 0, 0, 3}
	b = append(b, clientOption(optStructuredReply, nil)...)
	b = append(b, clientOption(optList, nil)...)
	q := append(str("vda"), 0, 0, 0, 2)
	q = append(append(q, str(BaseAllocation)...), str(DirtyBitmapPrefix+"monday")...)
	b = append(b, clientOption(optListMetaContext, append(str("vda"), 0, 0, 0, 0))...)
	b = append(b, clientOption(optSetMetaContext, q)...)
	return append(b, clientOption(optGo, append(str("vda"), 0, 2, 0, infoBlockSize, 0, infoName))...)
}

// requests is a session of all commands.
func requests() []byte {
	b := clientRequestBytes(cmdRead, 0, 1, 0, 3<<20)
	b = append(b, clientRequestBytes(cmdRead, cmdFlagDF, 2, 77, 2<<20)...)
	b = append(b, clientRequestBytes(cmdWrite, cmdFlagFUA, 3, 4096, 512)...)
	b = append(b, make([]byte, 512)...)
	b = append(b, clientRequestBytes(cmdBlockStatus, 0, 4, 0, fuzzSize)...)
	b = append(b, clientRequestBytes(cmdBlockStatus, cmdFlagReqOne, 5, 512, 512)...)
	b = append(b, clientRequestBytes(cmdWriteZeroes, cmdFlagNoHole, 6, 0, 512)...)
	b = append(b, clientRequestBytes(cmdTrim, 0, 7, 0, 512)...)
	b = append(b, clientRequestBytes(cmdFlush, 0, 8, 0, 0)...)
	b = append(b, clientRequestBytes(cmdWrite, 0, 9, fuzzSize, 512)...)
	b = append(b, make([]byte, 512)...)
	return append(b, clientRequestBytes(cmdDisc, 0, 10, 0, 0)...)
}

const fuzzSize = 4<<20 + 512

// talk lets a server read what a client says and returns what it answers.
func talk(t testing.TB, said []byte) []byte {
	t.Helper()
	a, b := &memory{b: make([]byte, fuzzSize)}, &memory{b: make([]byte, 512)}
	s, err := NewServer(exports(a, b), ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	// The device panics on a request beyond its end; the error is the fuzzer's doing.
	_ = s.ServeConn(context.Background(), &scripted{in: bytes.NewReader(said), out: func(p []byte) { out.Write(p) }})
	return out.Bytes()
}

// FuzzServer lets a server hear anything, with and without a negotiation before it.
func FuzzServer(f *testing.F) {
	seeds := [][]byte{append(hello(), requests()...), hello(), {0, 0, 0, 1}, append([]byte{0, 0, 0, 0}, clientOption(optExportName, []byte("vdb"))...),
		append([]byte{0, 0, 0, 3}, clientOption(optStartTLS, nil)...)}
	for _, s := range seeds {
		if len(talk(f, s)) <= 18 && len(s) > 4 {
			f.Fatal("a seed gets no answer")
		}
		f.Add(false, s)
	}
	f.Add(true, requests())
	f.Fuzz(func(t *testing.T, negotiated bool, said []byte) {
		if negotiated {
			said = append(hello(), said...)
		}
		talk(t, said)
	})
}

// serverSays is what our server says to our client in a session of a read of 3 MiB
// and a block status.
func serverSays(t testing.TB) (greeting, replies []byte) {
	said := append(hello(), clientRequestBytes(cmdRead, 0, 1, 0, 1<<20)...)
	said = append(said, clientRequestBytes(cmdBlockStatus, 0, 2, 0, fuzzSize)...)
	all := talk(t, said)
	n := bytes.Index(all, []byte{0x66, 0x8e, 0x33, 0xef})
	if n < 0 {
		t.Fatal("no structured reply")
	}
	return all[:n], all[n:]
}

// listen lets a client hear a server and do all it can do.
func listen(said []byte) (*Client, error) {
	c, err := NewClient(context.Background(), &scripted{in: bytes.NewReader(said)},
		ClientOptions{Export: "vda", Contexts: []string{BaseAllocation, DirtyBitmapPrefix + "monday"}})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	err = c.ReadAt(context.Background(), make([]byte, min(c.Size(), 1<<20)), 0)
	for _, serr := range c.Extents(context.Background(), BaseAllocation, 0, min(c.Size(), fuzzSize)) {
		if err == nil {
			err = serr
		}
	}
	return c, err
}

// clientHello is what a server says to a client up to the transmission phase.
func clientHello() []byte {
	b := binary.BigEndian.AppendUint64(nil, magicInit)
	b = binary.BigEndian.AppendUint64(b, magicOption)
	b = append(b, 0, 3)
	reply := func(option, kind uint32, data []byte) {
		b = binary.BigEndian.AppendUint64(b, magicOptReply)
		b = binary.BigEndian.AppendUint32(b, option)
		b = binary.BigEndian.AppendUint32(b, kind)
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(data))), data...)
	}
	reply(optStructuredReply, repAck, nil)
	reply(optSetMetaContext, repMetaContext, append([]byte{0, 0, 0, 1}, BaseAllocation...))
	reply(optSetMetaContext, repMetaContext, append([]byte{0, 0, 0, 2}, DirtyBitmapPrefix+"monday"...))
	reply(optSetMetaContext, repAck, nil)
	info := binary.BigEndian.AppendUint64([]byte{0, infoExport}, fuzzSize)
	reply(optGo, repInfo, append(info, 0, flagHasFlags))
	reply(optGo, repInfo, []byte{0, infoBlockSize, 0, 0, 0, 1, 0, 0, 16, 0, 2, 0, 0, 0})
	reply(optGo, repAck, nil)
	return b
}

// FuzzClient lets a client hear anything, with and without a negotiation before it.
func FuzzClient(f *testing.F) {
	_, replies := serverSays(f)
	if c, err := listen(clientHello()); c == nil || err == nil {
		f.Fatalf("the negotiation alone: %v, %v", c, err)
	}
	f.Add(true, replies)
	f.Add(false, clientHello())
	f.Add(false, append(clientHello(), replies...))
	f.Add(true, append(binary.BigEndian.AppendUint32(nil, magicSimple), make([]byte, 12)...))
	f.Fuzz(func(_ *testing.T, negotiated bool, said []byte) {
		if negotiated {
			said = append(clientHello(), said...)
		}
		_, _ = listen(said)
	})
}
