// SPDX-License-Identifier: Apache-2.0

package prune

import (
	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/chain"
)

// The maps of a disk are a list, newest first, and checkpoints of one line share its end.
// Where no checkpoint is left whose list begins with some map, that map is of use only
// together with the newer ones, which have overwritten some of what it names. So such maps
// are taken together, as a segment: merged into one, they name what the checkpoints read,
// and no more.

// lists are the lists of maps of all disks of all checkpoints, as a tree: a list is a path
// from the root, oldest map first.
type lists struct {
	maps  []archive.MapRef // each once
	ids   map[archive.Digest]int32
	nodes []listNode
	below map[[2]int32]int32 // node and map → the node below
}

type listNode struct {
	above  int32 // -1: the root
	mapID  int32
	below  int32 // how many nodes are
	begins bool  // some list begins here
}

func newLists() *lists {
	return &lists{ids: make(map[archive.Digest]int32), below: make(map[[2]int32]int32)}
}

// add takes the list of one disk.
func (l *lists) add(d *chain.Disk) {
	at := int32(-1)
	for i := len(d.Maps) - 1; i >= 0; i-- {
		id, known := l.ids[d.Maps[i].Name]
		if !known {
			id = int32(len(l.maps))
			l.ids[d.Maps[i].Name] = id
			l.maps = append(l.maps, d.Maps[i])
		}
		next, known := l.below[[2]int32{at, id}]
		if !known {
			next = int32(len(l.nodes))
			l.below[[2]int32{at, id}] = next
			l.nodes = append(l.nodes, listNode{above: at, mapID: id})
			if at >= 0 {
				l.nodes[at].below++
			}
		}
		at = next
	}
	if at >= 0 {
		l.nodes[at].begins = true
	}
}

// segment are maps that are of use together only, newest first.
type segment struct {
	node int32 // of the newest
	maps []archive.MapRef
}

// ends reports whether a segment ends with a node as its newest map.
func (l *lists) ends(node int32) bool { return l.nodes[node].begins || l.nodes[node].below > 1 }

// segments returns all segments: each node is in one of them.
func (l *lists) segments() []segment {
	var all []segment
	for n := range l.nodes {
		if !l.ends(int32(n)) {
			continue
		}
		s := segment{node: int32(n)}
		for at := int32(n); at >= 0 && (at == int32(n) || !l.ends(at)); at = l.nodes[at].above {
			s.maps = append(s.maps, l.maps[l.nodes[at].mapID])
		}
		all = append(all, s)
	}
	return all
}

// rewrite returns a list with segments replaced by the maps that were made of them, which
// fresh has by their nodes. changed is false for a list that was not known, too.
func (l *lists) rewrite(
	maps []archive.MapRef, fresh map[int32]archive.MapRef,
) (list []archive.MapRef, changed bool) {
	at := int32(-1)
	for i := len(maps) - 1; i >= 0; i-- {
		id, known := l.ids[maps[i].Name]
		if !known {
			return maps, false
		}
		if at, known = l.below[[2]int32{at, id}]; !known {
			return maps, false
		}
	}
	if at < 0 || !l.nodes[at].begins {
		return maps, false
	}
	for at >= 0 {
		ref, merged := fresh[at]
		if merged {
			list, changed = append(list, ref), true
		} else {
			list = append(list, l.maps[l.nodes[at].mapID])
		}
		for at = l.nodes[at].above; at >= 0 && !l.ends(at); at = l.nodes[at].above {
			if !merged {
				list = append(list, l.maps[l.nodes[at].mapID])
			}
		}
	}
	return list, changed
}
