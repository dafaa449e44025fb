// SPDX-License-Identifier: Apache-2.0

package sys

import (
	"bytes"
	"io"
	"strings"
	"testing"
)

// What is kept is bounded however it comes, as by who copies; the rest is counted.
func TestHead(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		parts []string
		kept  string
		cut   bool
	}{
		{nil, "", false},
		{[]string{"1234"}, "1234", false},
		{[]string{"12", "345"}, "1234", true},
		{[]string{"123456", "", "7"}, "1234", true},
	} {
		written, copied := Head{Most: 4}, Head{Most: 4}
		for _, p := range c.parts {
			if n, err := io.WriteString(&written, p); n != len(p) || err != nil {
				t.Errorf("%q: %d, %v", p, n, err)
			}
			if _, err := io.Copy(&copied, io.MultiReader(strings.NewReader(p))); err != nil {
				t.Error(err)
			}
		}
		for how, h := range map[string]*Head{"written": &written, "copied": &copied} {
			if h.String() != c.kept || h.Cut() != c.cut || h.Total() != int64(len(strings.Join(c.parts, ""))) {
				t.Errorf("%q, %s: %q, cut %v, %d bytes", c.parts, how, h.String(), h.Cut(), h.Total())
			}
		}
		kept := written.Bytes()
		if _, err := written.Write([]byte("....")); err != nil || !bytes.Equal(kept, []byte(c.kept)) {
			t.Errorf("what was read changes: %q", kept)
		}
	}
}
