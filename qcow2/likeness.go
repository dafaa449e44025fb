// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
)

// Likeness is what the first bytes of a file say of it. A guest can write any bytes to
// the beginning of its raw disk: they are good for a note, or to refuse, and never
// choose a format.
type Likeness struct {
	Format    Format // empty: like no image that has a header
	Encrypted bool   // of a qcow2
	Snapshots int    // internal ones, of a qcow2
	DataFile  bool   // the data of a qcow2 is in another file
}

// magics are what images begin with.
var magics = []struct {
	format Format
	at     int
	text   string
}{
	{Qcow2, 0, qcow2Magic}, {"vmdk", 0, "KDMV"}, {"vhdx", 0, "vhdxfile"}, {"vdi", 0x40, "\x7f\x10\xda\xbe"},
	{"qed", 0, "QED\x00"}, {"luks", 0, "LUKS\xba\xbe"},
}

// Resemble looks at the first bytes of r.
func Resemble(r io.ReaderAt) (Likeness, error) {
	var l Likeness
	head := make([]byte, 128)
	n, err := r.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return l, err
	}
	head = head[:n]
	for _, m := range magics {
		if m.at <= n && bytes.HasPrefix(head[m.at:], []byte(m.text)) {
			l.Format = m.format
			break
		}
	}
	if l.Format != Qcow2 || n < headerLengthV2 {
		return l, nil
	}
	l.Encrypted = binary.BigEndian.Uint32(head[32:]) != 0
	l.Snapshots = int(min(binary.BigEndian.Uint32(head[60:]), maxSnapshots))
	if n >= headerLengthV2+8 && binary.BigEndian.Uint32(head[4:]) >= 3 {
		l.DataFile = binary.BigEndian.Uint64(head[72:])&IncompatDataFile != 0
	}
	return l, nil
}
