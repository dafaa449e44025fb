// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"

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

// NamedError says that the maps of an archive name what is missing or damaged, be it for its own
// data or only for that of older checkpoints. What builds on it would name that again.
type NamedError struct{ Err error }

func (e *NamedError) Error() string { return e.Err.Error() }
func (e *NamedError) Unwrap() error { return e.Err }

// State is the content of a disk as it was archived. Beyond its end it reads as
// zeros.
type State interface {
	// Data is where it holds data in [0, size).
	Data(ctx context.Context, size int64) bitmapstore.Runs
	// Compare compares a disk with the state in a range. A state that can't be read is compared
	// in pieces, by their digests. Of one that differs and reaches beyond the range, counts tells
	// whether all of it should be as it was; if not, nobody knows what differs in it.
	Compare(ctx context.Context, disk Reader, run bitmapstore.Run, counts func(bitmapstore.Run) (bool, error)) (Comparison, error)
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
// the end of the data, and all that lies elsewhere in the file than it did.
func (w *witness) askArchivedData(ctx context.Context) (*Objection, error) {
	if !w.st.HasData() {
		return w.askHeldData(ctx)
	}
	archived, err := w.Archive.State(ctx, w.st.Disk)
	if err != nil {
		return nil, err
	}
	clean := bitmapstore.Subtract(bitmapstore.Between(0, w.Image.Size()), w.dirty)
	for _, ask := range []func(context.Context, State, bitmapstore.Runs) (*Objection, error){
		w.askVanished,
		w.askEnd,
		w.askRegrown,
		w.askSamples,
		w.askMoved,
	} {
		if o, err := ask(ctx, archived, clean); o != nil || err != nil {
			return o, err
		}
	}
	return nil, nil
}

// askVanished looks for data that is gone without a mark.
func (w *witness) askVanished(ctx context.Context, archived State, clean bitmapstore.Runs) (*Objection, error) {
	wasData := archived.Data(ctx, w.Image.Size())
	vanished := bitmapstore.Intersect(bitmapstore.Intersect(clean, wasData), w.Image.Content.Empty(ctx))
	look := w.comparer(archived, clean)
	defer look.close()
	for run, err := range vanished {
		if err != nil {
			return nil, err
		}
		found, err := look.compare(ctx, run)
		if err != nil {
			return nil, err
		}
		w.readAnew(found.Untold)
		if !found.Same {
			return objectAll(ReasonMap, "the archive of %s has data at %d that is gone from the image without a mark in bitmap %s (a shrunk and regrown disk or an exchanged backing file does this)",
				w.st.Manifest.Checkpoint, run.Start, w.st.Disk.Bitmap), nil
		}
	}
	return nil, nil
}

// askHeldData looks for data that vanished without a mark since a checkpoint of
// which no archive tells the content. There are no bytes to compare, so that nothing
// counts that changes without a write.
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
	for run, err := range bitmapstore.Intersect(bitmapstore.Intersect(clean, held), w.Image.Content.Unmapped(ctx)) {
		if err != nil {
			return nil, err
		}
		return w.objectToBoth(ReasonMap, "at checkpoint %s the disk held data at %d that is gone from the image without a mark in bitmap %s (a shrunk and regrown disk or an exchanged backing file does this)",
			w.st.Manifest.Checkpoint, run.Start, w.st.Disk.Bitmap), nil
	}
	return nil, nil
}
