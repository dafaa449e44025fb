// SPDX-License-Identifier: Apache-2.0

package report

import (
	"bytes"
	"encoding/json"
	"testing"
)

// What is written in pieces is, byte by byte, what encoding/json writes at once.
func TestJSONInPieces(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]*Report{"made": made(t), "empty": {}} {
		var got, want bytes.Buffer
		if err := r.JSON(&got); err != nil {
			t.Fatal(err)
		}
		e := json.NewEncoder(&want)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		if err := e.Encode(r); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Bytes(), want.Bytes()) {
			t.Errorf("%s: got\n%.2000s\nwant\n%.2000s", name, got.Bytes(), want.Bytes())
		}
	}
}
