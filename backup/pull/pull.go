// SPDX-License-Identifier: Apache-2.0

// Package pull offers the disks of a backup as NBD exports, for a client to pull.
//
// Each disk is one read-only export. base:allocation tells what is a hole or zero
// over the whole backing chain; an incremental disk also has the context
// qemu:dirty-bitmap:NAME, which tells what may have changed since its checkpoint.
// Both are named as libvirt names them in a pull backup. What changed is what the
// engine found out and trusts; no bitmap is handed out as it lies in the image, since
// none of them knows of overlays, and of what a disk was before it grew again.
//
// The images stay locked while they are served, so that there is no scratch file:
// nothing can be written that would have to be kept from the client.
package pull

import (
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"strings"
	"unicode/utf8"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/nbd"
	"github.com/imgbackup/imgbackup/qcow2"
)

// Names are what one disk is offered as; empty ones are libvirt's defaults.
type Names struct {
	Disk   string
	Export string // default: Disk
	Bitmap string // default: backup- and Disk
}

func (n Names) complete() Names {
	if n.Export == "" {
		n.Export = n.Disk
	}
	if n.Bitmap == "" {
		n.Bitmap = "backup-" + n.Disk
	}
	return n
}

// maxName is the longest string of the NBD protocol, bytes.
const maxName = 4096

// Check refuses names under which disks cannot be offered, before anything is done for
// them: that is a [usage.Error].
func Check(all []Names) error {
	seen := make(map[string]string)
	for _, n := range all {
		n = n.complete()
		for _, name := range []string{n.Export, nbd.DirtyBitmapPrefix + n.Bitmap} {
			if len(name) > maxName || !utf8.ValidString(name) || strings.ContainsRune(name, 0) {
				return usage.Errorf("the names of exports: disk %s: %.80q is no UTF-8 text of at most %d bytes", n.Disk, name, maxName)
			}
		}
		if other, ok := seen[n.Export]; ok {
			return usage.Errorf("the names of exports: disks %s and %s would both be %q", other, n.Disk, n.Export)
		}
		seen[n.Export] = n.Disk
	}
	return nil
}

// Offer is a disk as an export.
type Offer struct {
	Source  backup.OpenDisk
	Export  nbd.Export
	Context string // of what changed; empty: the disk is full
	Changed int64  // bytes; of a full disk its size

	changes *bitmapstore.Index
}

// Offers are the disks of one backup.
type Offers []Offer

// New makes offers of sources, in their order. tempDir is for changes that are too
// many for memory. The offers must be closed, and not be used after the sources.
func New(ctx context.Context, sources []backup.OpenDisk, names []Names, tempDir string) (_ Offers, err error) {
	var all Offers
	defer func() {
		if err != nil {
			all.Close()
		}
	}()
	random := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	for _, s := range sources {
		n := Names{Disk: s.Plan.Disk}
		for _, given := range names {
			if given.Disk == n.Disk {
				n = given
			}
		}
		if err := s.Image.CrossCheck(ctx, backup.CrossCheckSamples, random); err != nil {
			return nil, &chain.DiskError{Disk: n.Disk, Err: err}
		}
		o, err := newOffer(ctx, s, n.complete(), tempDir)
		if err != nil {
			return nil, &chain.DiskError{Disk: n.Disk, Err: err}
		}
		all = append(all, o)
	}
	return all, nil
}

func newOffer(ctx context.Context, s backup.OpenDisk, n Names, tempDir string) (Offer, error) {
	o := Offer{Source: s, Changed: s.Plan.VirtualSize}
	o.Export = nbd.Export{
		Name: n.Export, Description: "disk " + n.Disk, Size: s.Image.Size(), ReadOnly: true,
		Device: s.Image, Contexts: []nbd.Context{allocation(s.Image)}, BlockSize: blockSize(s.Image),
	}
	if s.Plan.Mode != backup.Incremental {
		return o, nil
	}
	var err error
	if o.changes, err = bitmapstore.NewIndex(ctx, s.Changes, tempDir); err != nil {
		return o, fmt.Errorf("what changed since %s: %w", s.Plan.SinceWhat(), err)
	}
	o.Changed = o.changes.Bytes()
	o.Export.Description += ", changes since " + s.Plan.SinceWhat()
	dirty := nbd.DirtyBitmap(n.Bitmap, func(_ context.Context, start, _ int64) bitmapstore.Runs { return o.changes.From(start) })
	o.Context = dirty.Name
	o.Export.Contexts = append(o.Export.Contexts, dirty)
	return o, nil
}

// Exports are for an [nbd.Server].
func (all Offers) Exports() []nbd.Export {
	var exports []nbd.Export
	for i := range all {
		exports = append(exports, all[i].Export)
	}
	return exports
}

// Close gives back what the offers keep outside memory.
func (all Offers) Close() {
	for i := range all {
		if all[i].changes != nil {
			all[i].changes.Close()
		}
	}
}

// allocation is base:allocation of a chain.
func allocation(c *qcow2.Image) nbd.Context {
	return nbd.Context{Name: nbd.BaseAllocation, Extents: func(ctx context.Context, start, end int64) iter.Seq2[nbd.Extent, error] {
		return func(yield func(nbd.Extent, error) bool) {
			for e, err := range c.Extents(start, end) {
				if err == nil {
					err = ctx.Err()
				}
				if err != nil {
					yield(nbd.Extent{}, err)
					return
				}
				out := nbd.Extent{Start: e.Offset, End: e.Offset + e.Length}
				switch e.Kind {
				case qcow2.Hole:
					out.Flags = nbd.StateHole | nbd.StateZero
				case qcow2.Zero:
					out.Flags = nbd.StateZero
				}
				if !yield(out, nil) {
					return
				}
			}
		}
	}}
}

// blockSize is the unit in which reads are cheapest: no cluster is decompressed
// twice.
func blockSize(c *qcow2.Image) int64 {
	const least = 64 << 10
	if h := c.Layers[0].Header; h != nil {
		return max(least, h.ClusterSize())
	}
	return least
}
