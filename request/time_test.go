// SPDX-License-Identifier: Apache-2.0

package request_test

import (
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/request"
)

func TestParseTime(t *testing.T) {
	t.Parallel()
	zone := time.FixedZone("", 2*60*60)
	for text, want := range map[string]string{
		"2026-11-28":                     "2026-11-27T22:00:00Z",
		"2026-11-28 03:00":               "2026-11-28T01:00:00Z",
		"2026-11-28T03:00":               "2026-11-28T01:00:00Z",
		"2026-11-28 03:00:30":            "2026-11-28T01:00:30Z",
		"2026-11-28 03:00:30 +0100":      "2026-11-28T02:00:30Z", // as lists have it
		"2026-11-28 03:00 -0100":         "2026-11-28T04:00:00Z",
		"2026-11-28T03:00:30Z":           "2026-11-28T03:00:30Z",
		"2026-11-28T03:00:30.5+01:00":    "2026-11-28T02:00:30.5Z",
		"":                               "",
		"yesterday":                      "",
		"2026-02-30":                     "",
		"28.11.2026":                     "",
		"2026-11-28 25:00":               "",
		"2026-11-28 03:00 or so, please": "",
	} {
		got, err := request.ParseTime(text, zone)
		if want == "" {
			if err == nil {
				t.Errorf("%q: %v", text, got)
			}
			continue
		}
		if err != nil || got.Format(time.RFC3339Nano) != want {
			t.Errorf("%q: %v, %v, want %s", text, got, err, want)
		}
	}
}
