// SPDX-License-Identifier: Apache-2.0

// Package printable makes text of others fit to be shown.
package printable

import "strings"

// OneLine keeps a text from breaking a table or a message, and from steering a terminal: it is without line
// breaks and control characters.
func OneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}
