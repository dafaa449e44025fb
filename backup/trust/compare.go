// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"cmp"
	"context"
	"iter"
	"slices"

	"github.com/imgbackup/imgbackup/bitmapstore"
)

// Comparison is what came of comparing a range of a disk with an archived state.
type Comparison struct {
	Same  bool // nothing that counts was found to differ
	Zeros bool // nothing that was found to be the same is other than zeros
	// Untold is where nobody can tell, in parts of the range. Same and Zeros say nothing of it.
	Untold []bitmapstore.Run
}

// comparer compares ranges that are called clean with the archive. It must be closed.
//
// Who has not the data key compares pieces, by their digests, and a piece may reach beyond the
// range. It speaks against the bitmap only if all of it is called clean: that is looked up then.
type comparer struct {
	*witness
	archived State
	clean    bitmapstore.Runs

	next func() (bitmapstore.Run, error, bool)
	stop func()
	at   bitmapstore.Run // the run of clean where the look-up is
	last int64           // where what was looked up last begins
}

func (w *witness) comparer(archived State, clean bitmapstore.Runs) *comparer {
	return &comparer{witness: w, archived: archived, clean: clean}
}

func (c *comparer) close() {
	if c.stop != nil {
		c.stop()
	}
}

// compare compares one range.
func (c *comparer) compare(ctx context.Context, run bitmapstore.Run) (Comparison, error) {
	return c.archived.Compare(ctx, c.Image.Content, run, c.callsClean)
}

// callsClean reports whether all of a range is called clean. Ranges that come in ascending order
// are looked up in one pass.
func (c *comparer) callsClean(r bitmapstore.Run) (bool, error) {
	if c.next == nil || r.Start < c.last {
		c.close()
		c.next, c.stop = iter.Pull2(iter.Seq2[bitmapstore.Run, error](c.clean))
		c.at = bitmapstore.Run{}
	}
	c.last = r.Start
	for c.at.End < r.End {
		run, err, ok := c.next()
		if err != nil || !ok {
			return false, err
		}
		c.at = run
	}
	return c.at.Start <= r.Start, nil
}

// cutBehind counts as changed what can't be told of a range where a disk may have been cut: what lies
// behind the last bytes of it that were found to be the same, and are not zeros.
func (c *comparer) cutBehind(ctx context.Context, run bitmapstore.Run, found *Comparison) error {
	for i, u := range slices.Backward(found.Untold) {
		if behind := (bitmapstore.Run{Start: u.End, End: run.End}); found.Same && !found.Zeros && behind.Len() > 0 {
			rest, err := c.compare(ctx, behind)
			if err != nil {
				return err
			}
			if !rest.Zeros {
				c.readAnew(found.Untold[i+1:])
				return nil
			}
		}
	}
	c.readAnew(found.Untold)
	return nil
}

// maxUntold bounds the ranges that are remembered to be read anew, 16 bytes each.
const maxUntold = 64 << 10

// readAnew counts ranges as changed of which nobody can tell whether they are what they were,
// where all that there is has to be told.
func (w *witness) readAnew(runs []bitmapstore.Run) {
	if w.untold = append(w.untold, runs...); len(w.untold) < maxUntold {
		return
	}
	// What lies between two of them is read, too, rather than that all are remembered.
	slices.SortFunc(w.untold, func(a, b bitmapstore.Run) int { return cmp.Compare(a.Start, b.Start) })
	n := 0
	for pair := range slices.Chunk(w.untold, 2) {
		last := pair[len(pair)-1]
		w.untold[n] = bitmapstore.Run{Start: pair[0].Start, End: max(pair[0].End, last.End)}
		n++
	}
	w.untold = w.untold[:n]
}

// changed is all that may have changed since the witness's state.
func (w *witness) changed() bitmapstore.Runs {
	if len(w.untold) == 0 {
		return w.dirty
	}
	return bitmapstore.Union(w.dirty, bitmapstore.Of(w.untold...))
}
