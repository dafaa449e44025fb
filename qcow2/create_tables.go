// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"encoding/binary"
	"fmt"
)

// createTable writes a table of 64-bit entries whose indexes only ascend,
// holding one page of at most 64 KiB in memory. Entries never set are zero,
// since the file beneath is new.
type createTable struct {
	f        CreateFile
	base     int64 // where the table begins in the file
	page     []byte
	first    int64 // index of the entry at the page's beginning
	from, to int64 // bytes of the page that are set; to 0: none
}

func newCreateTable(f CreateFile, clusterSize int64) createTable {
	return createTable{f: f, page: make([]byte, min(clusterSize, 64<<10))}
}

// set stores entry i. The index lies on the page at hand or a later one.
func (t *createTable) set(i int64, v uint64) error {
	perPage := int64(len(t.page) / 8)
	if t.to > 0 && i/perPage != t.first/perPage {
		if err := t.flush(); err != nil {
			return err
		}
	}
	t.first = i / perPage * perPage
	at := (i - t.first) * 8
	if t.to == 0 {
		t.from = at
	}
	binary.BigEndian.PutUint64(t.page[at:], v)
	t.to = at + 8
	return nil
}

// flush writes the page at hand, if any of it is set, and clears it.
func (t *createTable) flush() error {
	if t.to == 0 {
		return nil
	}
	if err := createWrite(t.f, t.page[t.from:t.to], t.base+t.first*8+t.from, "table"); err != nil {
		return err
	}
	clear(t.page[t.from:t.to])
	t.from, t.to = 0, 0
	return nil
}

// writeRefcounts takes the clusters of the refcount blocks and of the table
// over them, which count themselves, at the end of the file, and writes them.
// Nothing may be allocated afterwards.
func (c *Creator) writeRefcounts() (table, tableClusters int64, err error) {
	cs := c.o.ClusterSize
	perBlock := cs / createRefcountBytes
	others := c.next >> c.clusterBits
	var blocks int64
	for { // both grow monotonically, and by less than one in perBlock
		b := createDivUp(others+blocks+tableClusters, perBlock)
		t := createDivUp(b*8, cs)
		if b == blocks && t == tableClusters {
			break
		}
		blocks, tableClusters = b, t
	}
	if tableClusters*cs > max(createMaxRefTableBytes, cs) {
		return 0, 0, fmt.Errorf("qcow2: the image needs a refcount table of %d bytes, more than QEMU accepts: use larger clusters", tableClusters*cs)
	}
	table = c.take(tableClusters)
	first := c.take(blocks)

	entries := newCreateTable(c.f, cs)
	entries.base = table
	for i := range blocks {
		if err := entries.set(i, uint64(first+i<<c.clusterBits)); err != nil {
			return 0, 0, err
		}
	}
	if err := entries.flush(); err != nil {
		return 0, 0, err
	}
	// One refcount of one per cluster of the file; the rest of the last block
	// stays zero. The blocks lie together, so they are one long row.
	total := c.next >> c.clusterBits * createRefcountBytes
	ones := make([]byte, min(total, 1<<20))
	for i := 1; i < len(ones); i += createRefcountBytes {
		ones[i] = 1
	}
	for at := int64(0); at < total; at += int64(len(ones)) {
		n := min(total-at, int64(len(ones)))
		if err := createWrite(c.f, ones[:n], first+at, "refcount block"); err != nil {
			return 0, 0, err
		}
	}
	return table, tableClusters, nil
}

func createWrite(f CreateFile, p []byte, off int64, what string) error {
	if _, err := f.WriteAt(p, off); err != nil {
		return fmt.Errorf("qcow2: write %s of the new image at offset %d: %w", what, off, err)
	}
	return nil
}
