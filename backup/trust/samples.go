// SPDX-License-Identifier: Apache-2.0

package trust

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

// askSamples compares some of the data that is called clean: where there was none
// in the archive, and where there was.
func (w *witness) askSamples(ctx context.Context, archived State, clean bitmapstore.Runs) (*Objection, error) {
	isData := bitmapstore.Intersect(clean, w.Image.Content.Data(ctx))
	wasData := archived.Data(ctx, w.Image.Size())
	look := w.comparer(archived, clean)
	defer look.close()
	random := rand.New(rand.NewPCG(w.Seed, w.Seed))
	for _, set := range []bitmapstore.Runs{
		bitmapstore.Subtract(isData, wasData),
		bitmapstore.Intersect(isData, wasData),
	} {
		sample, err := sampleOf(set, w.samples(), sampleBytes, random)
		if err != nil {
			return nil, err
		}
		if err := archived.Prefetch(ctx, sample); err != nil {
			return nil, err
		}
		for _, run := range sample {
			found, err := look.compare(ctx, run)
			if err != nil {
				return nil, err
			}
			if !found.Same {
				return objectAll(ReasonContent, "the image differs from the archive of %s in bytes %d to %d, which bitmap %s calls unchanged",
					w.st.Manifest.Checkpoint, run.Start, run.End, w.st.Disk.Bitmap), nil
			}
		}
	}
	return nil, nil
}

// sampleOf draws up to count runs at random, each cut to a random part of at
// most length bytes.
func sampleOf(set bitmapstore.Runs, count int, length int64, random *rand.Rand) ([]bitmapstore.Run, error) {
	var sample []bitmapstore.Run
	seen := 0
	for run, err := range set {
		if err != nil {
			return nil, err
		}
		// Long runs stand for as many draws as they have grid cells.
		for start := run.Start; start < run.End; {
			end := min(run.End, start/archive.GridSize*archive.GridSize+archive.GridSize)
			part := bitmapstore.Run{Start: start, End: end}
			seen++
			if len(sample) < count {
				sample = append(sample, part)
			} else if i := random.IntN(seen); i < count {
				sample[i] = part
			}
			start = end
		}
	}
	for i, run := range sample {
		if free := run.Len() - length; free > 0 {
			run.Start += random.Int64N(free + 1)
			sample[i] = bitmapstore.Run{Start: run.Start, End: run.Start + length}
		}
	}
	return sample, nil
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
