// SPDX-License-Identifier: Apache-2.0

package request

import (
	"fmt"
	"time"
)

// ParseTime reads an instant as people write it, and as lists show it: a day, which begins then, or a day
// and a time, perhaps with its zone. Without one it is in zone.
func ParseTime(text string, zone *time.Location) (time.Time, error) {
	for _, form := range []string{
		time.RFC3339Nano, "2006-01-02 15:04:05 -0700", "2006-01-02 15:04 -0700", time.DateTime, "2006-01-02 15:04", "2006-01-02T15:04:05", "2006-01-02T15:04",
		time.DateOnly,
	} {
		if at, err := time.ParseInLocation(form, text, zone); err == nil {
			return at.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("%.60q is no time: want it as 2026-11-28, 2026-11-28 03:00 or 2026-11-28T03:00:00Z", text)
}
