// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"
)

// node is a qcow2 image as QEMU's programs are told of it: the one file, by a plain path.
// Its backing file is not opened, nor its external data file (which stands for nothing
// when bitmaps are written and reference counts are looked at), whatever its header
// names.
type node struct {
	path     string // absolute
	driver   string // of the file
	external bool   // the guest's data are in another file
	size     int64  // of the file or of the disk, bytes, whatever is more
}

func nodeAt(path string) (n node, err error) {
	if n.path, err = filepath.Abs(path); err != nil {
		return n, err
	}
	info, err := os.Stat(n.path)
	if err != nil {
		return n, err
	}
	switch mode := info.Mode(); {
	case mode.IsRegular():
		n.driver = "file"
	case mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0:
		n.driver = "host_device"
	default:
		return n, fmt.Errorf("%s is neither a file nor a block device", n.path)
	}
	n.size = info.Size()
	return n, n.readHeader()
}

// Of a qcow2 header: the disk's size, the features that a reader must know, and the one
// that says that data are elsewhere.
const (
	versionAt       = 4
	sizeAt          = 24
	featuresAt      = 72
	featuresEnd     = 80
	featureDataFile = 1 << 2
)

// readHeader finds out what QEMU has to be told of, which takes the node of a data file
// only for an image that has one, and how much there is to be read.
func (n *node) readHeader() error {
	f, err := os.Open(n.path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // it is only read
	var head [featuresEnd]byte
	switch _, err := io.ReadFull(f, head[:]); {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return nil // QEMU will say that it is no image
	case err != nil:
		return err
	}
	n.size = max(n.size, int64(min(binary.BigEndian.Uint64(head[sizeAt:]), math.MaxInt64)))
	n.external = binary.BigEndian.Uint32(head[versionAt:]) >= 3 && binary.BigEndian.Uint64(head[featuresAt:])&featureDataFile != 0
	return nil
}

// ReadMemory is how much address space a program of QEMU's needs to read an image, bytes,
// if its file and its disk have at most that size.
func ReadMemory(size int64) int64 {
	return 2<<30 + min(size, maxSize)>>40*(40<<20)
}

// maxSize is that of the largest disks that QEMU opens, bytes.
const maxSize = 2 << 50

// arguments puts the node where args have [imageFile].
func (n node) arguments(args []string) ([]string, error) {
	image, err := n.json()
	if !utf8.ValidString(n.path) {
		image, err = n.options(), nil
		args = slices.Insert(slices.Clone(args), 1, "--image-opts")
	}
	out := slices.Clone(args)
	for i, a := range out {
		if a == imageFile {
			out[i] = image
		}
	}
	return out, err
}

func (n node) json() (string, error) {
	all := map[string]any{
		"driver": "qcow2", "backing": nil,
		"file": map[string]any{"driver": n.driver, "filename": n.path},
	}
	if n.external {
		all["data-file"] = map[string]any{"driver": "null-co", "read-zeroes": true}
	}
	text, err := json.Marshal(all)
	return "json:" + string(text), err
}

// options is for a path that JSON cannot hold. QEMU warns of the empty backing= for which
// it has no other form there.
func (n node) options() string {
	text := "driver=qcow2,backing=,file.driver=" + n.driver + ",file.filename=" + strings.ReplaceAll(n.path, ",", ",,")
	if n.external {
		text += ",data-file.driver=null-co,data-file.read-zeroes=on"
	}
	return text
}
