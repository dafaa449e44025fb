// SPDX-License-Identifier: Apache-2.0

// Package memory finds out how much memory this program may take, and says what of it
// there is for buffers. Nothing is kept here: whoever runs the program asks once and
// passes the [Budget] on.
package memory

import (
	"fmt"
	"math"
)

const (
	// Usual is what runs take at most where nothing limits them, bytes: with as much,
	// nothing is slower than with more.
	Usual = 256 << 20
	// Least is where all that can be small is so, bytes. Less is tried all the same.
	Least = 96 << 20
)

// A Budget is how much memory a run may take, its children included. The zero value is
// [Usual].
type Budget struct {
	bytes int64 // 0: Usual or more
	why   string
}

// Of is a budget of so many bytes, set by what why says; Usual and more are the zero value.
func Of(bytes int64, why string) Budget {
	if bytes >= Usual {
		return Budget{}
	}
	return Budget{bytes: max(bytes, 1), why: why}
}

// Split is what each of n runs may take that work side by side, of room bytes.
func Split(room int64, n int) Budget {
	return Of(room/int64(max(n, 1)), fmt.Sprintf("for each of %d at once", n))
}

// Limited reports whether there is less than usual.
func (b Budget) Limited() bool { return b.bytes != 0 }

// Bytes is the budget, at most Usual.
func (b Budget) Bytes() int64 {
	if !b.Limited() {
		return Usual
	}
	return b.bytes
}

// String says what limits the memory, and to how much.
func (b Budget) String() string { return fmt.Sprintf("%d MiB (%s)", b.Bytes()>>20, b.why) }

// Of the usual budget, this part is for Go's heap; the rest is for what Go does not
// count, and for a qemu-img beside it.
const heapParts, allParts = 25, 32

// Heap is what Go's heap should stay below ([runtime/debug.SetMemoryLimit]), bytes.
func (b Budget) Heap() int64 { return b.HeapOf(1) }

// HeapOf is Heap where n runs with a budget each are at work in one process.
func (b Budget) HeapOf(n int) int64 { return int64(n) * b.Bytes() / allParts * heapParts }

// ofHeap is the budget whose heap has so many bytes.
func ofHeap(heap int64) int64 {
	if heap > math.MaxInt64/allParts {
		return math.MaxInt64
	}
	return heap * allParts / heapParts
}

// Part is how much of what is usually taken a run may take: usual itself where memory is
// not limited, least, which is not more, at [Least] and below, and between as the budget.
func (b Budget) Part(usual, least int64) int64 {
	if !b.Limited() || usual <= least {
		return usual
	}
	over := max(b.bytes-Least, 0)
	return least + int64(float64(usual-least)*float64(over)/(Usual-Least))
}

// Count is Part, of things.
func (b Budget) Count(usual, least int) int { return int(b.Part(int64(usual), int64(least))) }
