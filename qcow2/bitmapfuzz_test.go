// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/imgbackup/imgbackup/bitmapstore"
)

const (
	fuzzCluster = 512
	fuzzSize    = 3<<20 + 512 // virtual
)

// fuzzBitmapFile builds a file of 16 clusters with two bitmaps: the extension's data, and the file.
func fuzzBitmapFile() (extension, file []byte) {
	be := binary.BigEndian
	file = make([]byte, 16*fuzzCluster)
	entry := func(at int, table uint64, entries uint32, flags uint32, bits byte, name string) int {
		be.PutUint64(file[at:], table)
		be.PutUint32(file[at+8:], entries)
		be.PutUint32(file[at+12:], flags)
		file[at+16], file[at+17] = bitmapTypeDirty, bits
		be.PutUint16(file[at+18:], uint16(len(name)))
		copy(file[at+24:], name)
		return at + (24+len(name)+7)&^7
	}
	next := entry(fuzzCluster, 2*fuzzCluster, 2, bitmapAuto, 9, "fine") // 6145 bits: two clusters of bits
	end := entry(next, 3*fuzzCluster, 1, bitmapAuto, 16, "coarse")
	be.PutUint64(file[2*fuzzCluster:], 4*fuzzCluster)
	be.PutUint64(file[2*fuzzCluster+8:], 5*fuzzCluster)
	be.PutUint64(file[3*fuzzCluster:], tableEntryOnes)
	for i := 4 * fuzzCluster; i < 6*fuzzCluster; i++ {
		file[i] = byte(i*i) & 0x5f
	}
	extension = make([]byte, bitmapsExtensionSize)
	be.PutUint32(extension, 2)
	be.PutUint64(extension[8:], uint64(end-fuzzCluster))
	be.PutUint64(extension[16:], fuzzCluster)
	return extension, file
}

func fuzzBitmaps(extension, file []byte) ([]*Bitmap, error) {
	return readBitmaps(bitmapSource{
		file: bytes.NewReader(file), path: "fuzz", fileSize: int64(len(file)), clusterSize: fuzzCluster, size: fuzzSize,
		version: 3, autoclear: AutoclearBitmaps, extension: extension, hasExt: true,
	})
}

// FuzzBitmaps: whatever the metadata, there is an error or sets of bytes of the disk.
func FuzzBitmaps(f *testing.F) {
	extension, file := fuzzBitmapFile()
	bitmaps, err := fuzzBitmaps(extension, file)
	if err != nil || len(bitmaps) != 2 || bitmaps[0].Problem != nil || bitmaps[1].Problem != nil {
		f.Fatalf("the seed: %v, %v", bitmaps, err)
	}
	if n, err := bitmaps[1].DirtyBytes(); err != nil || n != fuzzSize {
		f.Fatalf("the seed: %d, %v", n, err)
	}
	f.Add(extension, file)
	f.Add(extension, file[:6*fuzzCluster])
	f.Add(extension, file[:5*fuzzCluster])
	f.Add(extension[:20], file)
	f.Fuzz(func(t *testing.T, extension, file []byte) {
		if len(file) > 1<<20 {
			return
		}
		bitmaps, err := fuzzBitmaps(extension, file)
		if err != nil {
			var damage *DamageError
			if !errors.As(err, &damage) {
				t.Fatalf("not called damage: %v", err)
			}
			return
		}
		if len(bitmaps) > len(file)/bitmapEntryHead {
			t.Fatalf("%d bitmaps in %d bytes", len(bitmaps), len(file))
		}
		for _, b := range bitmaps {
			end, dirty := int64(-1), int64(0)
			for r, err := range b.Runs() {
				if err != nil {
					// All of the table was proven when the directory was read.
					if b.Problem == nil {
						t.Fatal(err)
					}
					continue
				}
				if r.Start <= end || r.Start >= r.End || r.End > fuzzSize || r.Start%b.Granularity != 0 {
					t.Fatalf("run %v behind %d", r, end)
				}
				end, dirty = r.End, dirty+r.Len()
			}
			if b.StoredBytes < 0 || b.StoredBytes > int64(len(file))*fuzzCluster {
				t.Fatalf("%d bytes stored in a file of %d", b.StoredBytes, len(file))
			}
			if ok, err := bitmapstore.Equal(b.Runs(), b.Runs()); b.Problem == nil && (!ok || err != nil) {
				t.Fatalf("two readings differ: %v", err)
			}
		}
	})
}
