// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/clustermap"
)

// ClusterMap is the stored fingerprint of where the disk lay in its image: the active layer, by
// its own tables. It is in parts, so that those that stay the same are stored once.
type ClusterMap struct {
	Unit  int64         `json:"unit"`  // bytes that are looked at as one
	Span  int64         `json:"span"`  // bytes of the disk that a part covers; the last one's may be fewer
	Parts []archive.Ref `json:"parts"` // in order
	// Contents are, in an encrypted repository, the keyed digests of what the parts hold.
	Contents []archive.Digest `json:"contents,omitempty"`
}

// The most parts of a cluster map, and the least that each covers, bytes.
const (
	maxClusterParts = 64
	minClusterSpan  = 16 << 30
)

// NewClusterMap describes the cluster map of a disk of size bytes, which is more than 0, in an
// image with clusters of so many bytes. Its parts are all to be filled in.
func NewClusterMap(size, cluster int64) *ClusterMap {
	c := &ClusterMap{Unit: clustermap.Unit(cluster), Span: minClusterSpan}
	for partsOf(size, c.Span) > maxClusterParts {
		c.Span *= 2
	}
	c.Parts = make([]archive.Ref, partsOf(size, c.Span))
	return c
}

func partsOf(size, part int64) int64 { return (size-1)/part + 1 }

// Part is what the i-th part of the cluster map of a disk of size bytes covers.
func (c *ClusterMap) Part(i int, size int64) (start, end int64, h clustermap.Header) {
	start = int64(i) * c.Span
	end = start + min(c.Span, size-start)
	return start, end, clustermap.Header{Unit: c.Unit, Units: partsOf(end-start, c.Unit)}
}

// ClusterPart is a part of a cluster map, and what it must be.
type ClusterPart struct {
	Object archive.Ref
	Header clustermap.Header
}

func (d *Disk) validateClusters(c *checker, m *Manifest) {
	k := d.ClusterMap
	if k == nil {
		return
	}
	c.that(m.Kind == KindArchive && d.Size > 0, "a cluster map of a disk of %d bytes, kind %s", d.Size, m.Kind)
	c.powerOfTwo("unit of the cluster map", k.Unit, clustermap.MinUnit, clustermap.MaxUnit)
	c.powerOfTwo("span of the cluster map", k.Span, minClusterSpan, 1<<62)
	c.that(len(k.Parts) >= 1 && len(k.Parts) <= maxClusterParts, "a cluster map of %d parts", len(k.Parts))
	if c.err != nil {
		return
	}
	c.that(int64(len(k.Parts)) == partsOf(d.Size, k.Span), "a cluster map of %d parts for %d bytes", len(k.Parts), d.Size)
	c.that(len(k.Contents) == 0 || len(k.Contents) == len(k.Parts), "a cluster map of %d parts with %d digests of their content", len(k.Parts), len(k.Contents))
	for _, p := range k.Parts {
		c.ref("cluster map", p)
		c.that(p.Length <= archive.MaxClusters, "a part of the cluster map has %d bytes", p.Length)
	}
}
