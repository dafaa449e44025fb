// SPDX-License-Identifier: Apache-2.0

package suggest

import "testing"

func TestNear(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "ab", 2}, {"abc", "abc", 0}, {"acb", "abc", 1}, {"ab", "abc", 1}, {"abcd", "abc", 1}, {"axc", "abc", 1},
		{"kitten", "sitting", 3}, {"ab", "ba", 1}, {"äb", "bä", 1},
	} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("from %q to %q: %d, want %d", c.a, c.b, got, c.want)
		}
	}
	known := []string{"backup", "restore", "list", "check", "checkpoint", "c3"}
	for word, want := range map[string]string{
		"bakup": "backup", "restor": "restore", "C3": "c3", "lsit": "list", "chekc": "check", "checkpiont": "checkpoint", "rest": "restore",
		"x": "", "forget": "", "": "", "c9": "c3", "delete": "",
	} {
		if got := Near(word, known); got != want {
			t.Errorf("%q: got %q, want %q", word, got, want)
		}
	}
}
