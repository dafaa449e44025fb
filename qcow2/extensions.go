// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"strings"
)

// Types of header extensions.
const (
	extEnd           uint32 = 0
	extBackingFormat uint32 = 0xe2792aca
	extFeatureNames  uint32 = 0x6803f857
	extDataFile      uint32 = 0x44415441
	extCrypto        uint32 = 0x0537be77
)

// Extension is a header extension.
type Extension struct {
	Type   uint32
	Offset int64  // of its data in the file
	Data   []byte // without padding
}

// Extension returns the first header extension of a type, or nil.
func (h *Header) Extension(typ uint32) *Extension {
	for i := range h.Extensions {
		if h.Extensions[i].Type == typ {
			return &h.Extensions[i]
		}
	}
	return nil
}

// extensions reads the header extensions, which end before offset end, and
// takes from them what the header needs.
func (r *headerReader) extensions(f io.ReaderAt, end int64) error {
	start := r.h.Length
	if end < 0 || end > r.h.ClusterSize() {
		return r.damage(8, "the backing file's name is at offset %d, outside of the header's cluster", uint64(end))
	}
	if end <= start {
		return nil // no room for any
	}
	area := make([]byte, max(0, min(end, r.size)-start))
	if n, err := f.ReadAt(area, start); err != nil && (n < len(area) || !errors.Is(err, io.EOF)) {
		return fmt.Errorf("%s: read the header extensions: %w", r.path, err)
	}
	for pos := int64(0); start+pos < end; {
		if int64(len(area))-pos < 8 {
			if end-start-pos < 8 {
				return r.damage(start+pos, "a header extension reaches beyond the area for them")
			}
			return r.damage(start+pos, "the file ends inside the header extensions")
		}
		typ, n := binary.BigEndian.Uint32(area[pos:]), int64(binary.BigEndian.Uint32(area[pos+4:]))
		pos += 8
		if n > end-start-pos {
			return r.damage(start+pos-8, "a header extension of %d bytes reaches beyond the area for them", n)
		}
		if typ == extEnd {
			return nil
		}
		if n > int64(len(area))-pos {
			return r.damage(start+pos, "the file ends inside the header extensions")
		}
		e := Extension{Type: typ, Offset: start + pos, Data: bytes.Clone(area[pos : pos+n])}
		if err := r.extension(e); err != nil {
			return err
		}
		r.h.Extensions = append(r.h.Extensions, e)
		pos += (n + 7) &^ 7
	}
	return nil
}

// extension takes from an extension what the header needs.
func (r *headerReader) extension(e Extension) error {
	switch e.Type {
	case extBackingFormat:
		if len(e.Data) > maxBackingFormat {
			return r.damage(e.Offset, "the backing file's format has a name of %d bytes; %d are possible", len(e.Data), maxBackingFormat)
		}
		return r.name(e, &r.h.BackingFormat, "backing file's format")
	case extDataFile:
		if len(e.Data) > maxBackingName {
			return r.damage(e.Offset, "the data file's name has %d bytes, more than can be", len(e.Data))
		}
		return r.name(e, &r.h.DataFile, "data file's name")
	}
	return nil
}

func (r *headerReader) name(e Extension, to *string, what string) error {
	if r.h.Extension(e.Type) != nil {
		return r.damage(e.Offset, "the %s is recorded twice", what)
	}
	if bytes.IndexByte(e.Data, 0) >= 0 {
		return r.damage(e.Offset, "the %s contains a NUL byte", what)
	}
	*to = string(e.Data)
	return nil
}

// featureNames describes incompatible feature bits, with the names that the
// image itself gives them.
func (r *headerReader) featureNames(features uint64) string {
	names := map[int]string{}
	if e := r.h.Extension(extFeatureNames); e != nil {
		for t := e.Data; len(t) >= featureNameBytes; t = t[featureNameBytes:] {
			if t[0] == featureIncompatible {
				name, _, _ := bytes.Cut(t[2:featureNameBytes], []byte{0})
				names[int(t[1])] = string(name)
			}
		}
	}
	var list []string
	for ; features != 0; features &= features - 1 {
		bit := bits.TrailingZeros64(features)
		text := fmt.Sprintf("bit %d", bit)
		if name := names[bit]; name != "" {
			text += " (" + quote(name) + ")"
		}
		list = append(list, text)
	}
	return strings.Join(list, ", ")
}
