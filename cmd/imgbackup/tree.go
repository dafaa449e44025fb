// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"

	"github.com/imgbackup/imgbackup/chain"
)

// treeLine is a checkpoint that is yet to be drawn: what its own line begins with, and
// what the lines of those begin with that follow it.
type treeLine struct {
	n           *chain.Node
	begin, next string
}

// printTree draws how checkpoints follow one another: a straight chain straight down,
// however long it is. What branches off a checkpoint later stands before its first
// follower, indented.
func printTree(w *checkedWriter, tree *chain.Tree) {
	const margin = "  "
	var todo []treeLine // the next one last
	if len(tree.Roots) == 1 {
		todo = []treeLine{{tree.Roots[0], margin, margin}}
	} else {
		todo = branches(tree.Roots, margin, true)
	}
	for len(todo) > 0 {
		l := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		w.printf("%s%s", l.begin, l.n.Manifest.Checkpoint)
		if l.n.Note != "" {
			w.printf(" (%s)", l.n.Note)
		}
		if lost := lostNote(l.n.Manifest); lost != "" {
			w.printf(" (%s)", lost)
		}
		w.printf("\n")
		if kids := l.n.Children; len(kids) > 0 {
			todo = append(todo, treeLine{kids[0], l.next, l.next})
			todo = append(todo, branches(kids[1:], l.next, false)...)
		}
	}
}

// branches are lines that branch off behind a margin, the first one last; ends says
// that nothing goes on below the last of them.
func branches(nodes []*chain.Node, margin string, ends bool) []treeLine {
	var all []treeLine
	for i, n := range nodes {
		begin, next := margin+"├─ ", margin+"│  "
		if ends && i == len(nodes)-1 {
			begin, next = margin+"└─ ", margin+"   "
		}
		all = append(all, treeLine{n, begin, next})
	}
	slices.Reverse(all)
	return all
}
