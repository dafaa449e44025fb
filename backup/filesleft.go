// SPDX-License-Identifier: Apache-2.0

package backup

import (
	"slices"
	"strings"

	"github.com/imgbackup/imgbackup/chain"
)

// noteFilesLeft tells which files that have names the newest archive has, and this one will not:
// whoever named them once may take it that they are archived from then on.
func (s *session) noteFilesLeft() {
	last := chain.Newest(slices.DeleteFunc(slices.Clone(s.history), func(m *chain.Manifest) bool { return m.Kind != chain.KindArchive }))
	if last == nil || s.req.Import != nil {
		return
	}
	var left []string
	for i := range last.Files {
		f := &last.Files[i]
		if f.Role != chain.RoleFile || slices.ContainsFunc(s.req.Files, func(r FileRequest) bool { return r.Role == f.Role && r.Name == f.Name }) {
			continue
		}
		left = append(left, f.Name)
	}
	if len(left) > 0 {
		s.hooks.note("checkpoint %s had files that this one has not: %s (--with-file NAME=PATH takes one)", last.Checkpoint, strings.Join(left, ", "))
	}
}
