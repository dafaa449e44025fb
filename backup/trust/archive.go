// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"math/rand/v2"
	"slices"

	"github.com/imgbackup/imgbackup/bitmapstore"
	"github.com/imgbackup/imgbackup/chain"
)

// Archive is what the repository holds of the disk. What of it is missing or
// damaged is an [archive.DamageError].
type Archive interface {
	// State opens an archived state.
	State(ctx context.Context, disk *chain.Disk) (State, error)
	// Bitmap opens a bitmap that was recorded, after its bytes have been proven.
	Bitmap(ctx context.Context, rec *chain.BitmapRecord) (bitmapstore.Runs, error)
	// Delta is what a state's delta covers: by definition all that differs from
	// the state it builds on. It is nil when the state was stored whole.
	Delta(ctx context.Context, disk *chain.Disk) (bitmapstore.Runs, error)
}

// State is the content of a disk as it was archived. Beyond its end it reads as
// zeros.
type State interface {
	// Data is where it holds data in [0, size).
	Data(ctx context.Context, size int64) bitmapstore.Runs
	// Compare reports whether a disk reads in a range as the state does, and
	// whether both are all zeros there.
	Compare(ctx context.Context, disk Reader, run bitmapstore.Run) (same, zeros bool, err error)
	// Prefetch fetches what Compare will need for some runs, all at once. What
	// cannot be had is asked for again, and told of then.
	Prefetch(ctx context.Context, runs []bitmapstore.Run) error
}

// askArchivedData compares what the bitmap calls clean with the archive.
//
// A range that held data and is now unallocated, or zero, through the whole
// chain cannot have lost it without a write; nor can one that read as zeros
// hold other bytes now. The first is asked of the whole disk, since it takes
// only tables; of the second, and of data that stayed data, samples are read,
// and the end of the data.
func (w *witness) askArchivedData(ctx context.Context) (*Objection, error) {
	if !w.st.HasData() {
		return w.askHeldData(ctx)
	}
	size := w.Image.Size()
	clean := bitmapstore.Subtract(bitmapstore.Between(0, size), w.dirty)
	archived, err := w.Archive.State(ctx, w.st.Disk)
	if err != nil {
		return nil, err
	}
	wasData := archived.Data(ctx, size)
	vanished := bitmapstore.Intersect(bitmapstore.Intersect(clean, wasData), w.Image.Content.Empty(ctx))
	for run, err := range vanished {
		if err != nil {
			return nil, err
		}
		same, _, err := archived.Compare(ctx, w.Image.Content, run)
		if err != nil {
			return nil, err
		}
		if !same {
			return objectAll(ReasonMap, "the archive of %s has data at %d that is gone from the image without a mark in bitmap %s (a shrunk and regrown disk or an exchanged backing file does this)",
				w.st.Manifest.Checkpoint, run.Start, w.st.Disk.Bitmap), nil
		}
	}

	if o, err := w.askEnd(ctx, archived, bitmapstore.Intersect(clean, wasData)); o != nil || err != nil {
		return o, err
	}
	if o, err := w.askRegrown(ctx, archived, clean); o != nil || err != nil {
		return o, err
	}

	isData := bitmapstore.Intersect(clean, w.Image.Content.Data(ctx))
	random := rand.New(rand.NewPCG(w.Seed, w.Seed))
	for _, set := range []bitmapstore.Runs{
		bitmapstore.Subtract(isData, wasData),
		bitmapstore.Intersect(isData, wasData),
	} {
		sample, err := sampleOf(set, sampleRuns, sampleBytes, random)
		if err != nil {
			return nil, err
		}
		if err := archived.Prefetch(ctx, sample); err != nil {
			return nil, err
		}
		for _, run := range sample {
			same, _, err := archived.Compare(ctx, w.Image.Content, run)
			if err != nil {
				return nil, err
			}
			if !same {
				return objectAll(ReasonContent, "the image differs from the archive of %s in bytes %d to %d, which bitmap %s calls unchanged",
					w.st.Manifest.Checkpoint, run.Start, run.End, w.st.Disk.Bitmap), nil
			}
		}
	}
	return nil, nil
}

// askHeldData looks for data that vanished without a mark since a checkpoint of
// which no archive tells the content.
func (w *witness) askHeldData(ctx context.Context) (*Objection, error) {
	rec := w.st.Disk.Held
	if rec == nil {
		return nil, nil
	}
	held, err := w.Archive.Bitmap(ctx, rec)
	if err != nil {
		return nil, err
	}
	clean := bitmapstore.Subtract(bitmapstore.Between(0, w.Image.Size()), w.dirty)
	for run, err := range bitmapstore.Intersect(bitmapstore.Intersect(clean, held), w.Image.Content.Empty(ctx)) {
		if err != nil {
			return nil, err
		}
		return objectAll(ReasonMap, "at checkpoint %s the disk held data at %d that is gone from the image without a mark in bitmap %s (a shrunk and regrown disk or an exchanged backing file does this)",
			w.st.Manifest.Checkpoint, run.Start, w.st.Disk.Bitmap), nil
	}
	return nil, nil
}

// askEnd compares the last clean bytes that were not zero. A disk that shrank
// and grew again reads as zeros from the cut on, wherever nothing was written
// since, and its tables may show data there all the same: clusters that were
// preallocated as it grew, the rest of the cluster that it was cut in, the
// untouched parts of clusters larger than a granule. If the last bytes that
// could show a cut do not, there was none before them.
func (w *witness) askEnd(ctx context.Context, archived State, clean bitmapstore.Runs) (*Objection, error) {
	end := w.Image.Size()
	for count := sampleRuns; end > 0; count *= 2 {
		last, err := lastOf(clean.Clip(end), count)
		if err != nil {
			return nil, err
		}
		for _, run := range slices.Backward(last) {
			same, zero, err := archived.Compare(ctx, w.Image.Content, run)
			switch {
			case err != nil:
				return nil, err
			case !same:
				return objectAll(ReasonMap, "the last bytes that bitmap %s calls unchanged, up to %d, are not those in the archive of %s (a shrunk and regrown disk does this)",
					w.st.Disk.Bitmap, run.End, w.st.Manifest.Checkpoint), nil
			case !zero:
				return nil, nil
			}
		}
		// All of these are zeros within chunks that hold more.
		if end = 0; len(last) == count {
			end = last[0].Start
		}
	}
	return nil, nil
}
