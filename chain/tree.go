// SPDX-License-Identifier: Apache-2.0

package chain

import "slices"

// Tree is the history of a domain's checkpoints. A restored disk can be
// continued and an older copy of an image put back, so it may branch.
type Tree struct {
	Roots []*Node // by sequence
}

// Node is a checkpoint in a tree.
type Node struct {
	Manifest *Manifest
	Parent   *Node   // nil: a root
	Children []*Node // by sequence
	// Note says why a checkpoint does not follow its parent but an older
	// ancestor, or none: its parent is gone, or can't be its parent. Else it is
	// empty.
	Note string
}

// BuildTree links manifests by the uuids of their parents. A parent always has
// a lower sequence than its children, so that there are no cycles; a link that
// is otherwise is not followed.
func BuildTree(ms []*Manifest) *Tree {
	ms = slices.Clone(ms)
	slices.SortStableFunc(ms, bySequence)
	t := &Tree{}
	nodes := make(map[string]*Node, len(ms))
	for _, m := range ms {
		n := &Node{Manifest: m}
		if m.Parent != nil {
			p := nodes[m.Parent.UUID] // the older ones are there already
			switch {
			case p == nil:
				n.Note = "parent " + m.Parent.Name + " is gone"
				p = nearest(nodes, m.Ancestors)
			case p.Manifest.Sequence >= m.Sequence:
				n.Note = "parent " + m.Parent.Name + " is not older"
			}
			if p != nil && p.Manifest.Sequence < m.Sequence {
				n.Parent = p
				p.Children = append(p.Children, n)
			}
		}
		if n.Parent == nil {
			t.Roots = append(t.Roots, n)
		}
		nodes[m.UUID] = n
	}
	return t
}

// nearest returns the first of the ancestors that is still there, or nil.
func nearest(nodes map[string]*Node, ancestors []CheckpointRef) *Node {
	for _, a := range ancestors {
		if n := nodes[a.UUID]; n != nil {
			return n
		}
	}
	return nil
}

// Walk calls f for each node, parents before their children and branches in the
// order of their sequence. depth is 0 for roots.
func (t *Tree) Walk(f func(n *Node, depth int)) {
	// Not recursive: a chain may be as long as its domain is old.
	type item struct {
		n     *Node
		depth int
	}
	var stack []item
	push := func(nodes []*Node, depth int) {
		for _, n := range slices.Backward(nodes) {
			stack = append(stack, item{n, depth})
		}
	}
	push(t.Roots, 0)
	for len(stack) > 0 {
		top := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		f(top.n, top.depth)
		push(top.n.Children, top.depth+1)
	}
}

// Subtree returns the checkpoint with this uuid and all that follow it, those that
// follow before those that they follow: the one itself is the last.
func (t *Tree) Subtree(uuid string) []*Manifest {
	var all []*Manifest
	below := make(map[*Node]bool)
	t.Walk(func(n *Node, _ int) {
		if n.Manifest.UUID == uuid || below[n.Parent] {
			below[n] = true
			all = append(all, n.Manifest)
		}
	})
	slices.Reverse(all)
	return all
}

// Find returns the node of the checkpoint with this uuid, or nil.
func (t *Tree) Find(uuid string) *Node {
	var found *Node
	t.Walk(func(n *Node, _ int) {
		if n.Manifest.UUID == uuid {
			found = n
		}
	})
	return found
}
