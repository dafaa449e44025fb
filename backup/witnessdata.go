// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"context"
	"math/rand/v2"
	"slices"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/bitmapstore"
)

// sampleRuns and sampleBytes bound how much clean data is read again as a spot
// check.
const (
	sampleRuns  = 16
	sampleBytes = 256 << 10
)

// askArchivedData compares what the bitmap calls clean with the archive.
//
// A range that held data and is now unallocated, or zero, through the whole
// chain cannot have lost it without a write; nor can one that read as zeros
// hold other bytes now. The first is asked of the whole disk, since it takes
// only tables; of the second, and of data that stayed data, samples are read,
// and the end of the data.
func (w *witness) askArchivedData(ctx context.Context) (*objection, error) {
	if !w.st.HasData() {
		return w.askHeldData(ctx)
	}
	size := w.d.image.Size()
	clean := bitmapstore.Subtract(beyond(0, size), w.dirty)
	archived, err := w.s.openState(ctx, w.st.Disk)
	if err != nil {
		return nil, err
	}
	wasData := archived.runs(ctx, size, func(e archive.Entry) bool { return !e.Zero })
	vanished := bitmapstore.Intersect(bitmapstore.Intersect(clean, wasData), w.d.image.Empty(ctx))
	for run, err := range vanished {
		if err != nil {
			return nil, err
		}
		same, err := archived.equals(ctx, w.d.image, run)
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

	isData := bitmapstore.Intersect(clean, w.d.image.Data(ctx))
	random := rand.New(rand.NewPCG(w.s.seed, w.s.seed))
	for _, set := range []bitmapstore.Runs{
		bitmapstore.Subtract(isData, wasData),
		bitmapstore.Intersect(isData, wasData),
	} {
		sample, err := sampleOf(set, sampleRuns, sampleBytes, random)
		if err != nil {
			return nil, err
		}
		if err := archived.prefetch(ctx, sample); err != nil {
			return nil, err
		}
		for _, run := range sample {
			same, err := archived.equals(ctx, w.d.image, run)
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
func (w *witness) askHeldData(ctx context.Context) (*objection, error) {
	rec := w.st.Disk.Held
	if rec == nil {
		return nil, nil
	}
	held, err := w.s.recordedBitmap(ctx, rec)
	if err != nil {
		return nil, err
	}
	clean := bitmapstore.Subtract(beyond(0, w.d.image.Size()), w.dirty)
	for run, err := range bitmapstore.Intersect(bitmapstore.Intersect(clean, held), w.d.image.Empty(ctx)) {
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
func (w *witness) askEnd(ctx context.Context, archived *archived, clean bitmapstore.Runs) (*objection, error) {
	end := w.d.image.Size()
	for count := sampleRuns; end > 0; count *= 2 {
		last, err := lastOf(clean.Clip(end), count)
		if err != nil {
			return nil, err
		}
		for _, run := range slices.Backward(last) {
			same, zero, err := archived.compare(ctx, w.d.image, run)
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

// lastOf returns the last count grid cells' parts of a set, in ascending order.
func lastOf(set bitmapstore.Runs, count int) ([]bitmapstore.Run, error) {
	var last []bitmapstore.Run
	for run, err := range set {
		if err != nil {
			return nil, err
		}
		// What a long run begins with would be pushed out again.
		cell := int64(archive.GridSize)
		start := max(run.Start, (run.End-1)/cell*cell-int64(count)*cell)
		for start < run.End {
			stop := min(run.End, start/cell*cell+cell)
			last = append(last, bitmapstore.Run{Start: start, End: stop})
			start = stop
		}
		if len(last) > 2*count {
			last = slices.Clone(last[len(last)-count:])
		}
	}
	return last[max(0, len(last)-count):], nil
}
