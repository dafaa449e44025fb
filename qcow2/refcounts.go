// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
)

// Refcounts is what counting the references of an image to its clusters found, beside the counts
// that it has recorded.
type Refcounts struct {
	Leaks int64  // clusters that are recorded as used, or as used more often, than they are
	Odd   string // what else is not as it must be, the first of it; empty: nothing
}

// WantRefcounts says that [Layer.CheckRefcounts] is going to be called: whatever reads all mapping
// tables before that counts along.
func (l *Layer) WantRefcounts() {
	l.surveying.Lock()
	defer l.surveying.Unlock()
	l.refcountsWanted = true
}

// CheckRefcounts counts all references to clusters of the image's file, and compares them with the
// refcounts in it, as strictly as qemu-img check does. Where nothing is odd, a writer overwrites
// nothing. Where something is, qemu-img is to be asked: it may know better. What cannot be read, or
// counted in bounded memory and time, is odd, too; the only error is that ctx ended.
func (l *Layer) CheckRefcounts(ctx context.Context) (Refcounts, error) {
	l.surveying.Lock()
	defer l.surveying.Unlock()
	if l.refcounts == nil {
		l.count(ctx, defaultCounterLimits())
	}
	if err := ctx.Err(); err != nil {
		l.refcounts = nil
		return Refcounts{}, err
	}
	return *l.refcounts, nil
}

// count counts references, and keeps what that finds. The layer's layout is made on the way.
func (l *Layer) count(ctx context.Context, limits counterLimits) {
	switch {
	case l.Header == nil:
		l.refcounts = &Refcounts{Odd: "it has no refcounts"}
		return
	case l.cache != nil && l.cache.salvage:
		l.refcounts = &Refcounts{Odd: "it can be read in part only"}
		return
	}
	r := &refcountCheck{survey: survey{l: l, counts: &counter{l: l, limits: limits}}}
	r.run(ctx)
	l.refcounts = &Refcounts{Leaks: r.leaks.Load()}
	if odd := r.counts.odd.Load(); odd != nil {
		l.refcounts.Odd = *odd
	}
}

// Masks of an entry of the refcount table.
const (
	refTableReserved uint64 = 0x1ff
	refTableOffset   uint64 = ^refTableReserved
)

// refcountCheck compares references with refcounts.
type refcountCheck struct {
	survey
	blocks []int64 // where the refcount blocks are, up to the last; 0: there is none
	leaks  atomic.Int64
}

// run counts, window by window. All that is found is the counter's.
func (r *refcountCheck) run(ctx context.Context) {
	c := r.counts
	r.try(r.readTable())
	lo := int64(0)
	for window := 0; window == 0 || lo < c.clusters && c.wants(); window++ {
		if window >= c.limits.windows {
			c.found("its clusters are too many, or shared by too many, to be counted")
			return
		}
		c.begin(lo)
		r.fixed()
		if window == 0 {
			y, err := r.active(ctx)
			r.l.keep(y, err)
			r.try(err)
		} else {
			r.try(r.walk(ctx, r.l.Header.L1Offset, r.l.Header.L1Entries, true, nil))
		}
		r.snapshots(ctx)
		r.bitmaps()
		if c.wants() {
			r.try(r.compare(ctx))
		}
		lo = c.hi.Load()
	}
}

// try notes what could not be read.
func (r *refcountCheck) try(err error) {
	if err != nil {
		r.counts.found("%v", err)
	}
}

// readTable reads the refcount table.
func (r *refcountCheck) readTable() error {
	h, c := r.l.Header, r.counts
	table := make([]byte, h.RefcountBytes)
	if err := r.l.file.readMeta(table, h.RefcountOffset, "the refcount table"); err != nil {
		return err
	}
	for i := range len(table) / 8 {
		entry := binary.BigEndian.Uint64(table[i*8:])
		offset := int64(entry & refTableOffset)
		switch {
		case entry == 0:
			continue
		case entry&refTableReserved != 0 || offset&(h.ClusterSize()-1) != 0 || offset < 0 || offset > r.l.file.size-h.ClusterSize():
			return fmt.Errorf("an entry of the refcount table is %#x, which is no place of a block", entry)
		}
		for len(r.blocks) <= i {
			r.blocks = append(r.blocks, 0)
		}
		r.blocks[i] = offset
	}
	c.clusters = min(ceilDiv(r.l.file.size, h.ClusterSize()), int64(len(r.blocks))*h.refcountsPerBlock())
	return nil
}

func (h *Header) refcountsPerBlock() int64 { return h.ClusterSize() * 8 >> h.RefcountOrder }

// fixed counts what the header names.
func (r *refcountCheck) fixed() {
	h, c := r.l.Header, r.counts
	c.bytes(0, h.ClusterSize(), "the header")
	c.bytes(h.L1Offset, h.L1Entries*8, "the L1 table")
	c.bytes(h.RefcountOffset, h.RefcountBytes, "the refcount table")
	for _, block := range r.blocks {
		if block != 0 {
			c.bytes(block, h.ClusterSize(), "a refcount block")
		}
	}
	if h.SnapshotsOffset&(h.ClusterSize()-1) != 0 || h.SnapshotsOffset < 0 {
		c.found("the snapshot table is at offset %d, which is not at the beginning of a cluster", h.SnapshotsOffset)
	}
	e := h.Extension(extCrypto)
	switch {
	case e == nil && h.CryptMethod != cryptLUKS:
	case e == nil || len(e.Data) != 16 || h.CryptMethod != cryptLUKS:
		c.found("the header does not say where its encryption header is")
	default:
		c.bytes(int64(binary.BigEndian.Uint64(e.Data)), int64(binary.BigEndian.Uint64(e.Data[8:])), "the encryption header")
	}
}

// snapshots counts what internal snapshots refer to.
func (r *refcountCheck) snapshots(ctx context.Context) {
	l, c := r.l, r.counts
	if !c.wants() || l.Header.SnapshotCount == 0 {
		return
	}
	if l.Header.Has(IncompatDataFile) {
		c.found("there are internal snapshots beside a data file")
		return
	}
	list, err := readSnapshots(l.file, l.file.size, l.Path, l.Header)
	if err != nil {
		r.try(err)
		return
	}
	var table, l1 int64
	for _, s := range list {
		table, l1 = table+s.stored, l1+s.l1Entries*8
		if s.l1Offset < 0 || s.l1Offset&(l.Header.ClusterSize()-1) != 0 || s.l1Entries*8 > maxL1Bytes || l1 > l.file.size ||
			l.Header.Version >= 3 && s.extra < snapshotExtra {
			c.found("the entry of internal snapshot %s is not as it must be", quote(s.Name))
		}
	}
	c.bytes(l.Header.SnapshotsOffset, table, "the snapshot table")
	for _, s := range list {
		c.bytes(s.l1Offset, s.l1Entries*8, "the L1 table of a snapshot")
		if c.wants() {
			r.try(r.walk(ctx, s.l1Offset, s.l1Entries, false, nil))
		}
	}
}

// bitmaps counts what dirty bitmaps refer to. Those that a program without support for them made
// invalid are nobody's.
func (r *refcountCheck) bitmaps() {
	l, c := r.l, r.counts
	if l.BitmapsErr != nil && !errors.Is(l.BitmapsErr, ErrBitmapsDead) {
		r.try(l.BitmapsErr)
	}
	if !c.wants() || len(l.Bitmaps) == 0 {
		return
	}
	d, err := parseBitmapsExtension(&l.Bitmaps[0].src)
	r.try(err)
	c.bytes(d.offset, d.size, "the bitmap directory")
	budget := int64(maxTablesRead)
	for _, b := range l.Bitmaps {
		problem := b.Problem != nil && !b.InUse || b.refused != ""
		if budget -= b.tableEntries * 8; problem || b.tableOffset == 0 || budget < 0 {
			c.found("bitmap %s is not as it must be", quote(b.Name))
		}
		if !c.wants() {
			return
		}
		c.bytes(b.tableOffset, b.tableEntries*8, "the table of a bitmap")
		for e, err := range b.table() {
			if r.try(err); err == nil && e.offset != 0 {
				c.bytes(e.offset, l.Header.ClusterSize(), "a bitmap")
			}
		}
	}
}
