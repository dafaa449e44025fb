// SPDX-License-Identifier: Apache-2.0

package guestfs

import (
	"bytes"
	"context"
	"errors"
	"strconv"
)

// What a disk begins with: its MBR, or the GPT with 128 entries of 128 bytes from the
// third sector on.
const (
	tableSize = 34 * 512
	mbrTypes  = 0x1be + 4 // of the first of four entries of 16 bytes
	gptFirst  = 2 * 512
	gptEntry  = 128
	mbrLDM    = 0x42
	privHead  = 6 * 512 // where an LDM in an MBR has its own header
)

// ldmMetadata is the type of the partition in which Windows keeps what it knows of dynamic
// disks, 5808c8aa-7e8f-42e0-85d2-e1e90434cfb3, as a GPT has it.
var ldmMetadata = []byte{0xaa, 0xc8, 0x08, 0x58, 0x8f, 0x7e, 0xe0, 0x42, 0x85, 0xd2, 0xe1, 0xe9, 0x04, 0x34, 0xcf, 0xb3}

// isDynamic reports whether a disk that begins so is a dynamic disk of Windows. What its
// partitions hold only the logical disk manager knows.
func isDynamic(head []byte) bool {
	if len(head) < tableSize {
		return false
	}
	if bytes.HasPrefix(head[512:], []byte("EFI PART")) {
		for at := gptFirst; at < tableSize; at += gptEntry {
			if bytes.HasPrefix(head[at:], ldmMetadata) {
				return true
			}
		}
		return false
	}
	for i := range 4 {
		if head[mbrTypes+16*i] == mbrLDM {
			return bytes.HasPrefix(head[privHead:], []byte("PRIVHEAD"))
		}
	}
	return false
}

// findDynamic finds the dynamic disks, by name.
func (s *Session) findDynamic(ctx context.Context) (map[string]bool, error) {
	all := make(map[string]bool)
	for i, d := range s.disks {
		head, err := s.call(ctx, "pread-device", s.devices[i], strconv.Itoa(tableSize), "0")
		if err != nil && !errors.As(err, new(*CallError)) { // it may be shorter
			return nil, err
		}
		if isDynamic(head) {
			all[d.Name] = true
		}
	}
	return all, nil
}
