// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"slices"

	"github.com/imgbackup/imgbackup/bitmapstore"
)

// askEnd compares the last clean bytes that were not zero. A disk that shrank
// and grew again reads as zeros from the cut on, wherever nothing was written
// since, and its tables may show data there all the same: clusters that were
// preallocated as it grew, the rest of the cluster that it was cut in, the
// untouched parts of clusters larger than a granule. If the last bytes that
// could show a cut do not, there was none before them.
func (w *witness) askEnd(ctx context.Context, archived State, clean bitmapstore.Runs) (*Objection, error) {
	end := w.Image.Size()
	wasData := bitmapstore.Intersect(clean, archived.Data(ctx, end))
	look := w.comparer(archived, clean)
	defer look.close()
	for count := sampleRuns; end > 0; count *= 2 {
		last, err := lastOf(wasData.Clip(end), count)
		if err != nil {
			return nil, err
		}
		for _, run := range slices.Backward(last) {
			found, err := look.compare(ctx, run)
			if err == nil {
				err = look.cutBehind(ctx, run, &found)
			}
			switch {
			case err != nil:
				return nil, err
			case !found.Same:
				return objectAll(ReasonMap, "the last bytes that bitmap %s calls unchanged, up to %d, are not those in the archive of %s (a shrunk and regrown disk does this)",
					w.st.Disk.Bitmap, run.End, w.st.Manifest.Checkpoint), nil
			case !found.Zeros:
				return nil, nil
			}
		}
		// All of these are zeros within chunks that hold more, or can't be told.
		if end = 0; len(last) == count {
			end = last[0].Start
		}
	}
	return nil, nil
}
