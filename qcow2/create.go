// SPDX-License-Identifier: Apache-2.0

package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
)

// CreateFile is what a [Creator] writes an image to: a regular file, or
// something that behaves like one. Bytes that were never written read as
// zeros. *os.File is a CreateFile.
type CreateFile interface {
	WriteAt(p []byte, off int64) (int, error)
	Truncate(size int64) error
	Sync() error
}

// CreateOptions say what image a [Creator] makes.
type CreateOptions struct {
	// Size is the virtual size in bytes, a multiple of 512: QEMU would round
	// any other size down and so cut the disk.
	Size int64
	// ClusterSize is in bytes, a power of two from 512 to 2 MiB; 0 stands for
	// QEMU's default of 64 KiB. See [ClusterSizeFor].
	ClusterSize int64
	// Bitmap, when set, gives the image one persistent, enabled dirty bitmap
	// without any dirty bit.
	Bitmap *CreateBitmap
	// Backing, when set, is recorded as the backing file: what the image does
	// not allocate is read from there. Not together with Bitmap, which stands
	// for a flat image of ours.
	Backing *CreateBacking
}

// CreateBacking names the backing file of a new image. It is not opened, and
// need not exist.
type CreateBacking struct {
	// File is the name as QEMU is to read it: a path, which if relative begins
	// at the new image's folder. 1 to 1023 bytes, and no more than fit into the
	// header's cluster.
	File string
	// Format is the backing file's.
	Format Format
}

// CreateBitmap describes the empty dirty bitmap of a new image.
type CreateBitmap struct {
	// Name has 1 to 1023 bytes and no NUL, which QEMU would cut it at.
	Name string
	// Granularity is in bytes, a power of two from 512 to 2 GiB.
	Granularity int64
}

// HostRun tells where Length bytes of the virtual disk at offset Guest lie in
// the image file: at offset Host.
type HostRun struct{ Guest, Host, Length int64 }

// Limits that QEMU (docs/interop/qcow2.rst, block/qcow2.h) puts on what it
// opens; an image beyond them would be of no use.
const (
	createMinClusterSize    = 512
	createMaxClusterSize    = 2 << 20
	createDefaultCluster    = 64 << 10
	createMaxL1Bytes        = 32 << 20
	createMaxRefTableBytes  = 8 << 20
	createMaxBitmapBytes    = 512 << 20
	createMaxBitmapName     = 1023
	createMinGranularity    = 512
	createMaxGranularity    = 2 << 30
	createMaxHostOffset     = 1 << 56
	createHeaderLength      = 112
	createRefcountBytes     = 2 // refcount_order 4, QEMU's default
	createRefcountOrder     = 4
	createFlagCopied        = uint64(1) << 63 // the refcount is exactly one
	createZeroCluster       = uint64(1)       // in an L2 table: reads as zeros, allocated nowhere
	createMaxBackingName    = 1023
	createExtBitmaps        = uint32(0x23852875)
	createAutoclearBitmaps  = uint64(1)
	createBitmapFlagAuto    = uint32(1 << 1)
	createBitmapDirtyType   = 1
	createBitmapEntryHeader = 24
)

// Creator writes a new qcow2 version 3 image, front to back, in memory that
// does not grow with the disk (three pages of at most one cluster).
//
// Invariants: every cluster of the file up to its end is used exactly once, so
// that all refcounts are one and can be computed at the end; and the header is
// written last, after all else is durable, so that a file which was not
// finished is never taken for an image.
//
// A Creator is not safe for concurrent use, but the guest data that belongs to
// allocated runs may be written by others at any time before [Creator.Finish].
type Creator struct {
	f           CreateFile
	o           CreateOptions
	clusterBits uint
	next        int64 // host offset of the first free cluster
	l1Offset    int64
	l1Entries   int64
	l1, l2      createTable
	l2Index     int64 // index in L1 of the table in l2, -1 before the first
	lastEnd     int64 // guest offset up to which allocation has gone
	lastCluster int64 // guest cluster number of the last allocated one, -1
	lastHost    int64 // and where it is
	finished    bool
}

// ClusterSizeFor returns the smallest cluster size, at least wanted (0: 64
// KiB), with which a fully allocated disk of size bytes stays within QEMU's
// limits on the L1 table (32 MiB) and the refcount table (8 MiB).
func ClusterSizeFor(size, wanted int64) (int64, error) {
	if size < 0 {
		return 0, fmt.Errorf("qcow2: virtual size %d is negative", size)
	}
	if wanted == 0 {
		wanted = createDefaultCluster
	}
	cs := int64(createMinClusterSize)
	for cs < wanted && cs < createMaxClusterSize {
		cs <<= 1
	}
	for ; cs <= createMaxClusterSize; cs <<= 1 {
		if createCheckSize(size, cs) == nil {
			return cs, nil
		}
	}
	return 0, createCheckSize(size, createMaxClusterSize)
}

// createCheckSize tells why a disk of size bytes cannot have clusters of cs
// bytes, assuming that all of it may become allocated.
func createCheckSize(size, cs int64) error {
	l2 := createDivUp(size, cs*(cs/8))
	if l2 > createMaxL1Bytes/8 {
		return fmt.Errorf("qcow2: a virtual size of %d bytes is too large for clusters of %d bytes: use larger clusters", size, cs)
	}
	// The division keeps the sum far from overflow; 64 covers header, rounding
	// and an empty bitmap.
	clusters := createDivUp(size, cs) + l2 + createDivUp(l2*8, cs) + 64
	perBlock := cs / createRefcountBytes
	blocks := createDivUp(clusters, perBlock)
	blocks += createDivUp(blocks+createDivUp(blocks*8, cs), perBlock) + 2
	if blocks*8 > createMaxRefTableBytes {
		return fmt.Errorf("qcow2: a virtual size of %d bytes may need too large a refcount table with clusters of %d bytes: use larger clusters", size, cs)
	}
	return nil
}

// createDivUp returns a/b rounded up, for a ≥ 0 and b > 0, without overflow.
func createDivUp(a, b int64) int64 {
	q := a / b
	if a%b != 0 {
		q++
	}
	return q
}

// Check tells why no image of size bytes, which replaces o.Size, can be made, or
// why QEMU would not open it.
func (o CreateOptions) Check(size int64) error {
	o.Size = size
	_, err := prepareCreator(o)
	return err
}

// prepareCreator makes a creator that has no file yet.
func prepareCreator(o CreateOptions) (*Creator, error) {
	if o.ClusterSize == 0 {
		o.ClusterSize = createDefaultCluster
	}
	cs := o.ClusterSize
	if cs < createMinClusterSize || cs > createMaxClusterSize || cs&(cs-1) != 0 {
		return nil, fmt.Errorf("qcow2: cluster size %d is not a power of two from 512 bytes to 2 MiB", cs)
	}
	if o.Size < 0 || o.Size%512 != 0 {
		return nil, fmt.Errorf("qcow2: virtual size %d is not a multiple of 512 bytes", o.Size)
	}
	if err := createCheckSize(o.Size, cs); err != nil {
		return nil, err
	}
	if err := o.Bitmap.check(o.Size, cs); err != nil {
		return nil, err
	}
	c := &Creator{o: o, clusterBits: uint(bits.TrailingZeros64(uint64(cs))), l2Index: -1, lastCluster: -1}
	if err := c.checkBacking(); err != nil {
		return nil, err
	}
	return c, nil
}

// NewCreator empties f and begins an image in it. Options that cannot make an
// image which QEMU opens are refused before anything is written.
func NewCreator(f CreateFile, o CreateOptions) (*Creator, error) {
	c, err := prepareCreator(o)
	if err != nil {
		return nil, err
	}
	c.f = f
	cs := c.o.ClusterSize
	c.next = cs // the header's cluster
	c.l1Entries = createDivUp(o.Size, cs*(cs/8))
	if c.l1Entries > 0 {
		c.l1Offset = c.take(createDivUp(c.l1Entries*8, cs))
	}
	c.l1 = newCreateTable(f, cs)
	c.l1.base = c.l1Offset
	c.l2 = newCreateTable(f, cs)
	if err := f.Truncate(0); err != nil {
		return nil, fmt.Errorf("qcow2: empty the new image: %w", err)
	}
	return c, nil
}

// ClusterSize is in bytes.
func (c *Creator) ClusterSize() int64 { return c.o.ClusterSize }

// check refuses bitmaps that QEMU would refuse, for a disk of size bytes and
// clusters of cs bytes.
func (b *CreateBitmap) check(size, cs int64) error {
	if b == nil {
		return nil
	}
	if len(b.Name) == 0 || len(b.Name) > createMaxBitmapName {
		return fmt.Errorf("qcow2: a bitmap's name has 1 to %d bytes, not %d", createMaxBitmapName, len(b.Name))
	}
	for i := range len(b.Name) {
		if b.Name[i] == 0 {
			return errors.New("qcow2: a bitmap's name must not contain a NUL byte")
		}
	}
	g := b.Granularity
	if g < createMinGranularity || g > createMaxGranularity || g&(g-1) != 0 {
		return fmt.Errorf("qcow2: bitmap granularity %d is not a power of two from 512 bytes to 2 GiB", g)
	}
	if size == 0 {
		return errors.New("qcow2: a disk of size 0 cannot have a bitmap")
	}
	if createDivUp(createDivUp(size, g), 8) > createMaxBitmapBytes {
		return fmt.Errorf("qcow2: a bitmap of granularity %d is too large for a disk of %d bytes", g, size)
	}
	return nil
}

// take reserves n clusters at the end of the file and returns their offset.
func (c *Creator) take(n int64) int64 {
	off := c.next
	c.next += n << c.clusterBits
	return off
}

// Allocate gives the guest range [start, end) its place in the file and tells
// where that is, in ascending order and without gaps. Ranges come in ascending
// order, must not overlap and lie within the virtual size; what none of them
// covers is not allocated: it reads as zeros, or as the backing file. Clusters
// that a range covers only in part read as zeros elsewhere, so long as nothing
// is written there.
func (c *Creator) Allocate(start, end int64) ([]HostRun, error) {
	if c.finished {
		return nil, errors.New("qcow2: allocation after the image was finished")
	}
	if start < c.lastEnd || end < start || end > c.o.Size {
		return nil, fmt.Errorf("qcow2: range %d..%d is not in ascending order (after %d) within the virtual size %d", start, end, c.lastEnd, c.o.Size)
	}
	c.lastEnd = end
	var runs []HostRun
	for pos := start; pos < end; {
		cluster := pos >> c.clusterBits
		inCluster := pos - cluster<<c.clusterBits
		n := min(end-pos, c.o.ClusterSize-inCluster)
		host, err := c.cluster(cluster)
		if err != nil {
			return nil, err
		}
		host += inCluster
		if k := len(runs) - 1; k >= 0 && runs[k].Host+runs[k].Length == host {
			runs[k].Length += n
		} else {
			runs = append(runs, HostRun{Guest: pos, Host: host, Length: n})
		}
		pos += n
	}
	return runs, nil
}

// cluster returns the host offset of a guest cluster that is the last one
// allocated or a later one, which is then allocated.
func (c *Creator) cluster(n int64) (int64, error) {
	if n == c.lastCluster {
		return c.lastHost, nil
	}
	if err := c.tableOf(n); err != nil {
		return 0, err
	}
	host := c.take(1)
	if c.next > createMaxHostOffset {
		return 0, errors.New("qcow2: the image file would be larger than the format can address")
	}
	if err := c.l2.set(n%(c.o.ClusterSize/8), uint64(host)|createFlagCopied); err != nil {
		return 0, err
	}
	c.lastCluster, c.lastHost = n, host
	return host, nil
}

// tableOf makes the L2 table of guest cluster n the one at hand.
func (c *Creator) tableOf(n int64) error {
	i := n / (c.o.ClusterSize / 8)
	if i == c.l2Index {
		return nil
	}
	if err := c.l2.flush(); err != nil {
		return err
	}
	c.l2Index, c.l2.base = i, c.take(1)
	return c.l1.set(i, uint64(c.l2.base)|createFlagCopied)
}

// Zero makes the guest range [start, end) explicit zeros, which hide what a
// backing file holds there. It begins at a cluster's beginning and ends at one,
// or at the end of the disk; among the ranges of [Creator.Allocate] it takes its
// place in ascending order, and shares no cluster with them. It takes up 8 bytes
// per cluster.
func (c *Creator) Zero(start, end int64) error {
	cs := c.o.ClusterSize
	switch {
	case c.finished:
		return errors.New("qcow2: allocation after the image was finished")
	case start < c.lastEnd || end < start || end > c.o.Size:
		return fmt.Errorf("qcow2: range %d..%d is not in ascending order (after %d) within the virtual size %d", start, end, c.lastEnd, c.o.Size)
	case start%cs != 0 || end%cs != 0 && end != c.o.Size:
		return fmt.Errorf("qcow2: range %d..%d is not of whole clusters of %d bytes", start, end, cs)
	}
	for n := start / cs; n*cs < end; n++ {
		if err := c.tableOf(n); err != nil {
			return err
		}
		if err := c.l2.set(n%(cs/8), createZeroCluster); err != nil {
			return err
		}
	}
	c.lastEnd = end
	return nil
}

// FileSize returns how long the image file is so far, in bytes: the clusters
// of guest data that were allocated, and the tables that map them.
func (c *Creator) FileSize() int64 { return c.next }

// Finish writes the remaining metadata and makes the image durable; all guest
// data must have been written. The header comes last, after an fsync of the
// rest. It can be called once; a failure leaves a file that is no image.
func (c *Creator) Finish() error {
	if c.finished {
		return errors.New("qcow2: the image was finished already")
	}
	c.finished = true
	if err := c.l2.flush(); err != nil {
		return err
	}
	if err := c.l1.flush(); err != nil {
		return err
	}
	directory, directorySize, err := c.writeBitmap()
	if err != nil {
		return err
	}
	refTable, refTableClusters, err := c.writeRefcounts()
	if err != nil {
		return err
	}
	if err := c.f.Truncate(c.next); err != nil {
		return fmt.Errorf("qcow2: set the new image's length to %d bytes: %w", c.next, err)
	}
	if err := c.f.Sync(); err != nil {
		return fmt.Errorf("qcow2: sync the new image's data: %w", err)
	}
	h := c.header(refTable, refTableClusters, directory, directorySize)
	if err := createWrite(c.f, h, 0, "header"); err != nil {
		return err
	}
	if err := c.f.Sync(); err != nil {
		return fmt.Errorf("qcow2: sync the new image's header: %w", err)
	}
	return nil
}

// writeBitmap writes the bitmap directory. The bitmap's table needs no write:
// an entry of zero means that all bits of its cluster are clear.
func (c *Creator) writeBitmap() (directory, size int64, err error) {
	b := c.o.Bitmap
	if b == nil {
		return 0, 0, nil
	}
	dataBytes := createDivUp(createDivUp(c.o.Size, b.Granularity), 8)
	entries := createDivUp(dataBytes, c.o.ClusterSize)
	table := c.take(createDivUp(entries*8, c.o.ClusterSize))

	be := binary.BigEndian
	entry := make([]byte, 0, createBitmapEntryHeader+createMaxBitmapName+8)
	entry = be.AppendUint64(entry, uint64(table))
	entry = be.AppendUint32(entry, uint32(entries))
	entry = be.AppendUint32(entry, createBitmapFlagAuto)
	entry = append(entry, createBitmapDirtyType, byte(bits.TrailingZeros64(uint64(b.Granularity))))
	entry = be.AppendUint16(entry, uint16(len(b.Name)))
	entry = be.AppendUint32(entry, 0) // no extra data
	entry = append(entry, b.Name...)
	for len(entry)%8 != 0 {
		entry = append(entry, 0)
	}
	size = int64(len(entry))
	directory = c.take(createDivUp(size, c.o.ClusterSize))
	return directory, size, createWrite(c.f, entry, directory, "bitmap directory")
}
