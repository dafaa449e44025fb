// SPDX-License-Identifier: Apache-2.0

package check

import (
	"maps"
	"slices"

	"github.com/imgbackup/imgbackup/chain"
)

// seeSigner notes who has signed a checkpoint, and tells where its time is not to be believed.
// mu is held.
func (c *check) seeSigner(m *chain.Manifest) {
	if m.By == "" {
		return
	}
	if c.signed == nil {
		c.signed = make(map[string]int)
	}
	c.signed[m.By]++
	if why := m.Doubt(); why != "" {
		c.doubts = append(c.doubts, "the time of checkpoint "+m.Checkpoint+" of "+m.Domain+" is not believed, and forget neither removes nor counts it: "+why)
	}
}

// sumSigned fills in the report.
func (c *check) sumSigned() {
	slices.Sort(c.doubts)
	c.report.Notes = append(c.report.Notes, c.doubts[:min(len(c.doubts), maxNotes)]...)
	for _, by := range slices.Sorted(maps.Keys(c.signed)) {
		c.report.Signed = append(c.report.Signed, Signed{by, c.signed[by]})
	}
}
