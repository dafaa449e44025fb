// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/imgbackup/imgbackup/qcow2"
)

// The formats that are read here. Encrypted qcow2 images are, too.
const (
	LUKS qcow2.Format = "luks"
	VMDK qcow2.Format = "vmdk"
	VHDX qcow2.Format = "vhdx"
	VDI  qcow2.Format = "vdi"
	QED  qcow2.Format = "qed"
)

// Formats are all of them.
func Formats() []qcow2.Format { return []qcow2.Format{LUKS, VMDK, VHDX, VDI, QED} }

// headLen is how much of an image is looked at, bytes.
const headLen = 512

const maxDescriptor = 1 << 20 // bytes, of a vmdk; QEMU's own limit is 20 sectors

// check refuses images that are not of the format that they are said to be, and
// those that name other files.
func check(path string, format qcow2.Format) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return checkImage(f, path, format)
}

func checkImage(f io.ReaderAt, path string, format qcow2.Format) error {
	var head [headLen]byte
	if _, err := f.ReadAt(head[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	magic := func(at int, want string) error {
		if !bytes.HasPrefix(head[at:], []byte(want)) {
			return &qcow2.UnsupportedError{Path: path, What: fmt.Sprintf("it does not begin as an image of format %s does", format)}
		}
		return nil
	}
	switch format {
	case qcow2.Qcow2:
		return nil // its header has been looked at
	case LUKS:
		return magic(0, "LUKS\xba\xbe")
	case VHDX:
		return magic(0, "vhdxfile") // QEMU itself refuses those with a parent
	case VDI:
		return magic(64, "\x7f\x10\xda\xbe") // likewise
	case QED:
		const backingFile = 1
		if err := magic(0, "QED\x00"); err != nil {
			return err
		}
		if binary.LittleEndian.Uint64(head[16:])&backingFile != 0 {
			return &qcow2.PolicyError{Path: path, What: "qed images with a backing file are not opened"}
		}
		return nil
	case VMDK:
		if err := magic(0, "KDMV"); err != nil {
			return &qcow2.UnsupportedError{Path: path, What: "of vmdk images those that are one file are read (monolithicSparse, streamOptimized): qemu-img convert makes one of others"}
		}
		return checkVMDK(f, head[:], path)
	}
	return &qcow2.UnsupportedError{Path: path, What: fmt.Sprintf("images of format %.40q cannot be read", format)}
}

// checkVMDK looks at the header and the descriptor in a sparse extent (VMware's
// "Virtual Disk Format 5.0").
func checkVMDK(f io.ReaderAt, head []byte, path string) error {
	const sector = 512
	capacity := binary.LittleEndian.Uint64(head[12:])
	at, length := binary.LittleEndian.Uint64(head[28:]), binary.LittleEndian.Uint64(head[36:])
	if capacity == 0 {
		// QEMU takes such a file for a list of others.
		return &qcow2.PolicyError{Path: path, What: "a vmdk image that names others is not opened"}
	}
	if at > 1<<40 || length > maxDescriptor/sector {
		return &qcow2.UnsupportedError{Path: path, What: "its descriptor is too large"}
	}
	text := make([]byte, length*sector)
	if n, err := f.ReadAt(text, int64(at*sector)); err != nil && !errors.Is(err, io.EOF) {
		return err
	} else if text = text[:n]; len(text) == 0 {
		return &qcow2.UnsupportedError{Path: path, What: "it has no descriptor"}
	}
	if bytes.Contains(text, []byte("parentFileNameHint")) {
		return &qcow2.PolicyError{Path: path, What: "vmdk images with a parent are not opened"}
	}
	for _, kind := range []string{"monolithicSparse", "streamOptimized"} {
		if bytes.Contains(text, []byte(`createType="`+kind+`"`)) {
			return nil
		}
	}
	return &qcow2.UnsupportedError{Path: path, What: "of vmdk images those that are one file are read (monolithicSparse, streamOptimized)"}
}
