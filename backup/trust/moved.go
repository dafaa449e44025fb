// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"fmt"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
)

// Clusters tells where the clusters of an image lie, and lay.
type Clusters interface {
	// Moved is where a layer's data does not lie as it did when its map was recorded, of a
	// disk of size bytes: in what both sizes have. What has been settled is left out.
	Moved(ctx context.Context, layer int, then *chain.ClusterMap, size int64) (moved bitmapstore.Runs, settled Settled, err error)
	// Settle says that all of that reads as it did then, or may have changed. It need not be
	// asked for again unless more moves.
	Settle(layer int, then *chain.ClusterMap, settled Settled)
}

// Settled is what is known of what has moved.
type Settled struct {
	Bytes  int64             // so many were compared
	Untold []bitmapstore.Run // of these nobody can tell
}

// askMoved compares all that is called clean and lies elsewhere in the file than it did, or in
// another way: compressed, as zeros, not at all. Only a write makes QEMU move a cluster, and a
// write leaves a mark; but qemu-img may have written the same data anew. So the bytes tell.
func (w *witness) askMoved(ctx context.Context, archived State, clean bitmapstore.Runs) (*Objection, error) {
	if w.Clusters == nil {
		return nil, nil
	}
	if w.flat {
		return w.askAppeared(ctx, archived, clean)
	}
	then := w.st.Disk.ClusterMap
	if then == nil {
		return nil, nil
	}
	moved, before, err := w.Clusters.Moved(ctx, w.layer, then, w.st.Disk.Size)
	if err != nil {
		return nil, err
	}
	w.readAnew(before.Untold)
	o, bytes, err := w.compareAll(ctx, archived, clean, moved)
	if o != nil || err != nil {
		return o, err
	}
	if bytes += before.Bytes; bytes > before.Bytes {
		w.Clusters.Settle(w.layer, then, Settled{bytes, w.untold})
	}
	if bytes > 0 {
		w.proof += fmt.Sprintf("; %d bytes that it calls unchanged lie elsewhere in the image than they did, and are those of the archive", bytes)
	}
	return nil, nil
}

// askAppeared is [witness.askMoved] for a disk that was restored with its bitmap. It lies where
// the restore put it, which no archive knows; but what the archive has no data for, the restore
// has not allocated. So clusters that hold data there were written to since.
func (w *witness) askAppeared(ctx context.Context, archived State, clean bitmapstore.Runs) (*Objection, error) {
	size := w.Image.Size()
	cluster := w.Image.Layers[w.layer].Header.ClusterSize()
	written := archived.Data(ctx, size).Round(cluster, size)
	appeared := bitmapstore.Subtract(w.Image.Content.Data(ctx), written)
	o, _, err := w.compareAll(ctx, archived, clean, appeared)
	if o == nil && err == nil {
		w.proof += "; it lies where a restore put it"
	}
	return o, err
}

// compareAll reads all of a set that is called clean, and counts its bytes. It is fetched from the
// archive in pieces, some at once.
func (w *witness) compareAll(ctx context.Context, archived State, clean, set bitmapstore.Runs) (*Objection, int64, error) {
	look := w.comparer(archived, clean)
	defer look.close()
	var batch []bitmapstore.Run
	var bytes int64
	compare := func() (*Objection, error) {
		if err := archived.Prefetch(ctx, batch); err != nil {
			return nil, err
		}
		for _, run := range batch {
			found, err := look.compare(ctx, run)
			if err != nil {
				return nil, err
			}
			w.readAnew(found.Untold)
			if !found.Same {
				return objectAll(ReasonMoved, "the image differs from the archive of %s in bytes %d to %d, which were written to in another place of the file and which bitmap %s calls unchanged: it was cleared or recreated",
					w.st.Manifest.Checkpoint, run.Start, run.End, w.st.Disk.Bitmap), nil
			}
		}
		batch = batch[:0]
		return nil, nil
	}
	for run, err := range bitmapstore.Intersect(clean, set) {
		if err != nil {
			return nil, 0, err
		}
		bytes += run.Len()
		for start := run.Start; start < run.End; {
			end := min(run.End, start/archive.GridSize*archive.GridSize+archive.GridSize)
			batch = append(batch, bitmapstore.Run{Start: start, End: end})
			start = end
			if len(batch) < sampleRuns {
				continue
			}
			if o, err := compare(); o != nil || err != nil {
				return o, 0, err
			}
		}
	}
	o, err := compare()
	return o, bytes, err
}
