// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"time"
)

// Snapshot is an internal snapshot, as the snapshot table describes it.
type Snapshot struct {
	ID, Name    string        // raw bytes
	Created     time.Time     // UTC
	VMClock     time.Duration // time that the guest had run when it was taken
	VMStateSize int64         // bytes; 0: disk only
	Size        int64         // virtual size of the disk, bytes

	l1Offset, l1Entries int64 // its L1 table; nothing has been checked of it
	extra               int64 // bytes of extra data
	stored              int64 // bytes of the entry, with its padding
}

// snapshotExtra is how many bytes of extra data an entry of a version 3 image has, at least.
const snapshotExtra = 16

// snapshotHeader is the fixed part of an entry of the snapshot table.
const snapshotHeader = 40

// readSnapshots reads the snapshot table of an image whose header is h.
func readSnapshots(f io.ReaderAt, size int64, path string, h *Header) ([]Snapshot, error) {
	if h.SnapshotCount == 0 {
		return nil, nil
	}
	damage := func(off int64, format string, args ...any) error {
		return &DamageError{Path: path, Offset: off, What: "the snapshot table: " + fmt.Sprintf(format, args...)}
	}
	start := h.SnapshotsOffset
	room := min(size-start, maxSnapshotsBytes)
	if room < int64(h.SnapshotCount)*snapshotHeader {
		return nil, damage(start, "it has %d entries and is too large for the file of %d bytes", h.SnapshotCount, size)
	}
	section := io.NewSectionReader(f, start, room)
	r := bufio.NewReaderSize(section, 64<<10)
	var pos int64
	read := func(n int64) ([]byte, error) {
		b := make([]byte, n)
		_, err := io.ReadFull(r, b)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, damage(start+pos, "it reaches beyond the end of the file, or is larger than %d bytes", int64(maxSnapshotsBytes))
		}
		if err != nil {
			return nil, fmt.Errorf("%s: read the snapshot table: %w", path, err)
		}
		pos += n
		return b, nil
	}

	// Every entry has its fixed part in the file, so the count is no empty
	// promise by now.
	list := make([]Snapshot, 0, h.SnapshotCount)
	for range h.SnapshotCount {
		at := start + pos
		b, err := read(snapshotHeader)
		if err != nil {
			return nil, err
		}
		be := binary.BigEndian
		idLength, nameLength := int64(be.Uint16(b[12:])), int64(be.Uint16(b[14:]))
		extra := int64(be.Uint32(b[36:]))
		if extra > maxSnapshotExtra {
			return nil, damage(at, "an entry has %d bytes of extra data, more than %d", extra, maxSnapshotExtra)
		}
		s := Snapshot{
			Created:     time.Unix(int64(be.Uint32(b[16:])), int64(be.Uint32(b[20:]))).UTC(),
			VMStateSize: int64(be.Uint32(b[32:])),
			Size:        h.RawSize,
			l1Offset:    int64(be.Uint64(b)),
			l1Entries:   int64(be.Uint32(b[8:])),
			extra:       extra,
		}
		clock := be.Uint64(b[24:])
		if clock > math.MaxInt64 {
			clock = math.MaxInt64
		}
		s.VMClock = time.Duration(clock)
		rest, err := read(extra + idLength + nameLength)
		if err != nil {
			return nil, err
		}
		if extra >= 8 {
			s.VMStateSize = int64(be.Uint64(rest))
		}
		if extra >= 16 {
			s.Size = int64(be.Uint64(rest[8:]))
		}
		if s.VMStateSize < 0 || s.Size < 0 {
			return nil, damage(at, "an entry has a size that is more than can be")
		}
		s.ID = string(rest[extra : extra+idLength])
		s.Name = string(rest[extra+idLength:])
		s.stored = (pos - (at - start) + 7) &^ 7
		list = append(list, s)
		// The padding may be cut off where the table ends the file.
		padding := -pos & 7
		skipped, err := r.Discard(int(padding))
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%s: read the snapshot table: %w", path, err)
		}
		pos += int64(skipped)
	}
	return list, nil
}
