// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"strings"

	"github.com/imgbackup/imgbackup/internal/sys"
)

// Said keeps the first bytes of what a program says.
type Said struct{ sys.Head }

// String is what it said in one line.
func (s *Said) String() string {
	return strings.Join(strings.FieldsFunc(s.Head.String(), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}
