// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"slices"
	"sync"
)

// groupCache keeps the groups that were read last for a chunk by itself: the next is often its
// neighbour. Of groups of one chunk, which are the large ones, it keeps none.
type groupCache struct {
	mu   sync.Mutex
	kept []keptGroup // the newest last
}

// keptGroups bounds the groups in memory; each has at most 600 KiB.
const keptGroups = 8

type keptGroup struct {
	pack   Digest
	offset int64
	length int32
	lines  []byte
	frames []byte
}

func (c *groupCache) find(e *Entry) int {
	return slices.IndexFunc(c.kept, func(k keptGroup) bool {
		return k.pack == e.Pack.Name && k.offset == e.FrameOffset && k.length == e.FrameLength
	})
}

// get returns the group of e; nil: it is not kept.
func (c *groupCache) get(e *Entry) *group {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.find(e)
	if i < 0 {
		return nil
	}
	k := c.kept[i]
	c.kept = append(slices.Delete(c.kept, i, i+1), k)
	return &group{lines: k.lines, all: k.lines, rest: k.frames, whole: k.frames}
}

// keep takes a copy of a group.
func (c *groupCache) keep(e *Entry, g *group) {
	if len(g.all) <= groupLineLen {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.find(e) >= 0 {
		return
	}
	if len(c.kept) == keptGroups {
		c.kept = slices.Delete(c.kept, 0, 1)
	}
	c.kept = append(c.kept, keptGroup{
		pack: e.Pack.Name, offset: e.FrameOffset, length: e.FrameLength,
		lines: bytes.Clone(g.all), frames: bytes.Clone(g.whole),
	})
}
