// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"strings"

	"github.com/imgbackup/imgbackup/drill/record"
)

// text makes what may have come from a guest a text that a record can hold.
func text(s string) string {
	s = strings.ToValidUTF8(s, "\ufffd")
	if len(s) > record.MaxText {
		s = strings.ToValidUTF8(s[:record.MaxText-4], "") + "…"
	}
	return s
}

// texts makes names and texts such that a record can hold them.
func texts(all map[string]string) map[string]string {
	if len(all) == 0 {
		return nil
	}
	out := make(map[string]string, len(all))
	for name, s := range all {
		name = strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
				return r
			}
			return '_'
		}, strings.ToLower(name))
		out[name[:min(len(name), 255)]] = text(s)
	}
	return out
}
