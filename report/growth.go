// SPDX-License-Identifier: Apache-2.0

package report

import (
	"time"
)

// Growth is how a domain grows in the repository: what its checkpoints stored, whether
// they were forgotten since or not, and what that comes to if it goes on so.
type Growth struct {
	Since   time.Time `json:"since"` // the first checkpoint that counts
	PerDay  int64     `json:"bytes_per_day"`
	In30    int64     `json:"stored_bytes_in_30_days"`
	In365   int64     `json:"stored_bytes_in_365_days"`
	Samples int       `json:"checkpoints"` // that count
}

const day = 24 * time.Hour

// growthOf is a line through what was stored in the last 90 days, by least squares. nil:
// there are fewer than four checkpoints, or they are of less than two days.
func growthOf(all []*Checkpoint, now time.Time) *Growth {
	var total int64
	var x, y []float64 // days, bytes
	var since time.Time
	for _, c := range all {
		total += c.StoredBytes
		if age := now.Sub(c.Created); age > 90*day || age < 0 {
			continue
		}
		if len(x) == 0 {
			since = c.Created
		}
		x, y = append(x, c.Created.Sub(since).Hours()/24), append(y, float64(total))
	}
	if len(x) < 4 || x[len(x)-1] < 2 {
		return nil
	}
	slope := max(slopeOf(x, y), 0)
	return &Growth{
		Since: since, PerDay: int64(slope), In30: total + int64(30*slope), In365: total + int64(365*slope), Samples: len(x),
	}
}

// slopeOf is the slope of the line nearest to the points.
func slopeOf(x, y []float64) float64 {
	var mx, my, xy, xx float64
	for i := range x {
		mx, my = mx+x[i], my+y[i]
	}
	mx, my = mx/float64(len(x)), my/float64(len(y))
	for i := range x {
		xy, xx = xy+(x[i]-mx)*(y[i]-my), xx+(x[i]-mx)*(x[i]-mx)
	}
	if xx == 0 {
		return 0
	}
	return xy / xx
}
