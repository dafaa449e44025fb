// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgbackup/imgbackup/internal/testkit"
	"github.com/imgbackup/imgbackup/qcow2"
)

// BenchmarkClusterMap is of a fully allocated disk of 1 TiB: as QEMU allocates it at once, and
// with each cluster somewhere else.
func BenchmarkClusterMap(b *testing.B) {
	path := filepath.Join(b.TempDir(), "disk.qcow2")
	testkit.Tool(b, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path, "1T")
	for _, scattered := range []bool{false, true} {
		name := "in order"
		if scattered {
			name = "scattered"
			scatter(b, path)
		}
		b.Run(name, func(b *testing.B) {
			image, err := qcow2.Open(path, qcow2.Qcow2, qcow2.OpenOptions{})
			if err != nil {
				b.Fatal(err)
			}
			defer image.Close()
			var stored int64
			for b.Loop() {
				maps := clusterMaps{}
				maps.look(image)
				m, err := maps.of(b.Context(), 0)
				if err != nil {
					b.Fatal(err)
				}
				stored = 0
				for _, p := range m.rec.Parts {
					stored += p.Length
				}
				maps.close()
			}
			b.ReportMetric(float64(stored)/(1<<20), "MiB")
		})
	}
}

// scatter mixes up the clusters of each 16 L2 tables of an image.
func scatter(b *testing.B, path string) {
	b.Helper()
	image, err := qcow2.Open(path, qcow2.Qcow2, qcow2.OpenOptions{})
	if err != nil {
		b.Fatal(err)
	}
	h := image.Layers[0].Header
	image.Close()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	l1 := make([]byte, 8<<11)
	if _, err := f.ReadAt(l1, h.L1Offset); err != nil {
		b.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 1))
	const group = 16
	for at := 0; at < len(l1)/8; at += group {
		tables := make([]byte, group*h.ClusterSize())
		each := func(do func(p []byte, off int64) (int, error)) {
			for i := range int64(group) {
				off := int64(binary.BigEndian.Uint64(l1[8*(int64(at)+i):]) & 0x00fffffffffffe00)
				if _, err := do(tables[i*h.ClusterSize():][:h.ClusterSize()], off); err != nil {
					b.Fatal(err)
				}
			}
		}
		each(f.ReadAt)
		var x, y [8]byte
		random.Shuffle(len(tables)/8, func(i, j int) {
			copy(x[:], tables[8*i:])
			copy(y[:], tables[8*j:])
			copy(tables[8*i:], y[:])
			copy(tables[8*j:], x[:])
		})
		each(f.WriteAt)
	}
}
