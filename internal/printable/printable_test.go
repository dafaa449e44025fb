// SPDX-License-Identifier: Apache-2.0

package printable

import "testing"

func TestOneLine(t *testing.T) {
	t.Parallel()
	if got, want := OneLine("a\nb\tc\x1b[2Jd\x7fe\u009bf\u00a0ü"), "a b c [2Jd e f\u00a0ü"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
