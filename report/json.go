// SPDX-License-Identifier: Apache-2.0

package report

import (
	"io"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	jsonv1 "github.com/go-json-experiment/json/v1"
)

// JSON writes the report as encoding/json does, with two spaces for each level, but in
// pieces: a report of many checkpoints is larger than what should be held of it twice.
func (r *Report) JSON(w io.Writer) error {
	err := json.MarshalWrite(w, r, jsonv1.DefaultOptionsV1(), jsontext.WithIndent("  "), jsontext.EscapeForHTML(false))
	if err == nil {
		_, err = io.WriteString(w, "\n")
	}
	return err
}
