// SPDX-License-Identifier: Apache-2.0

package jobs

import (
	"maps"
	"slices"
	"time"

	"github.com/imgbackup/imgbackup/config"
)

// Due are the jobs with a schedule whose next time, counted from the begin of their last
// run, has come; a job that has never run is due. Sorted by name.
func Due(c *config.Config, now time.Time) (names []string, err error) {
	h := NewHistory(c.State)
	for _, name := range slices.Sorted(maps.Keys(c.Jobs)) {
		s := c.Jobs[name].Schedule
		if s.IsZero() {
			continue
		}
		// A run in the future is of a clock that was wrong: it must not stop jobs until
		// the clock has caught up, nor make them due all the time.
		last, err := h.last(name, now)
		if err != nil {
			return nil, err
		}
		if last != nil {
			if next, ok := s.Next(last.Begun.In(now.Location())); !ok || next.After(now) {
				continue
			}
		}
		names = append(names, name)
	}
	return names, nil
}
