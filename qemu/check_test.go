// SPDX-License-Identifier: Apache-2.0

package qemu

import "testing"

// FuzzCheckReport: qemu-img's report is refused or gives sane numbers.
func FuzzCheckReport(f *testing.F) {
	good := `{"image-end-offset": 393216, "total-clusters": 16, "check-errors": 0, "leaks": 2, "format": "qcow2"}`
	r, err := parseCheck([]byte(good), checkLeaks)
	if err != nil || r != (CheckResult{Leaks: 2, ImageEnd: 393216}) || r.Err() != nil {
		f.Fatalf("the seed: %+v, %v", r, err)
	}
	f.Add([]byte(good), checkLeaks)
	f.Add([]byte(`{"check-errors": 1, "corruptions": 7}`), checkCorruptions)
	f.Add([]byte(`{}`), checkClean)
	f.Fuzz(func(t *testing.T, report []byte, status int) {
		r, err := parseCheck(report, status)
		if err != nil {
			return
		}
		if r.Leaks < 0 || r.Corruptions < 0 || r.Errors < 0 || r.ImageEnd < 0 || status == checkCorruptions && r.Err() == nil {
			t.Fatalf("%+v", r)
		}
	})
}
